"""What a version holds and says about itself, gathered from the published artifacts it is made of.

Whoever runs a version should never need the lineage that made it: generation settings, prompt lengths to plan memory
for, file hashes and the scoreboard travel with the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.data.token_files import TokenFile
from llm_assets.engine.architecture import read_architecture
from llm_assets.evaluation.evaluate import quality, read_answer_rows, read_scoreboard
from llm_assets.evaluation.paired import improvement
from llm_assets.evaluation.scoreboard import MERGED, primary_scores
from llm_assets.registry.asking import Served
from llm_assets.registry.prompts import PromptVersion, read_prompt_record
from llm_assets.training.identity import MANIFEST, directory_fingerprint, file_sha256, settings_digest

FORMAT = 2  # raise when a version's layout or metadata changes, so that older versions are registered anew
RESAMPLES = 2000  # behind the interval of a score
PERCENTILES = (50, 90, 99, 100)
MODEL_PATH, VARIANTS_PATH, EVALUATION_PATH = "artifacts/model", "artifacts/quantized", "artifacts/evaluation"
ADAPTER_PATH = "artifacts/adapter"


@dataclass(frozen=True)
class VersionSources:
    """Published directories a version is made of.

    Attributes:
        model: The lineage.
        merged: Merged model.
        variants: Variant name to its directory.
        adapter: LoRA adapter, for its training record.
        tokenized: Tokenized dataset, for its lengths.
        evaluation: Scoreboard and answers.
        chat: Conversations the rows were made from, for their counts and prompts; None if unknown.
        served: How callers are understood.
    """

    model: str
    merged: Path
    variants: Mapping[str, Path]
    adapter: Path
    tokenized: Path
    evaluation: Path
    chat: Path | None = None
    served: Served = field(default_factory=Served)

    def fingerprints(self) -> dict[str, str]:
        """Content fingerprint of each source by its asset path."""
        named = {
            "merged_model": self.merged,
            **{f"quantized/{name}": directory for name, directory in self.variants.items()},
            "lora_adapter": self.adapter,
            "tokenized_dataset": self.tokenized,
            "evaluation": self.evaluation,
            **({"chat_dataset": self.chat} if self.chat else {}),
        }
        return {name: directory_fingerprint(directory) for name, directory in named.items()}

    def prompts(self) -> list[PromptVersion]:
        """Prompt versions the training rows were written with."""
        return read_prompt_record(self.chat) if self.chat else []

    def placed(self) -> dict[str, Path]:
        """Where each stored directory goes in the version."""
        return {
            MODEL_PATH: self.merged,
            **{f"{VARIANTS_PATH}/{name}": directory for name, directory in self.variants.items()},
            ADAPTER_PATH: self.adapter,
            EVALUATION_PATH: self.evaluation,
        }


def identity(name: str, sources: VersionSources) -> str:
    """Digest of everything that makes a version what it is; measured speeds and the run that made it are left out."""
    fingerprints = sources.fingerprints()
    fingerprints.pop("evaluation")  # holds measured latencies: what counts of it is the scoreboard's quality
    scoreboard = quality(read_scoreboard(sources.evaluation))
    return settings_digest(
        {
            "format": FORMAT,
            "name": name,
            "sources": fingerprints,
            "quality": scoreboard,
            "served": asdict(sources.served),
        }
    )


def describe(sources: VersionSources, tags: Mapping[str, str]) -> dict[str, Any]:
    """The version's metadata, JSON-serialisable.

    Returns:
        `task`, `generation`, `architecture`, `lengths` (percentiles of prompt and completion tokens), `dtypes`, `data`,
        `training`, `merge`, `variants`, `prompts`, `served` (columns, system message and template), `base`,
        `row_format`, `fingerprints`, `files` (path in the version to SHA-256), `scoreboard`,
        `scores` (primary metric of each candidate with its interval) and `tags`.
    """
    scoreboard, served, prompts = read_scoreboard(sources.evaluation), sources.served, sources.prompts()
    architecture = _architecture(sources.merged)
    variants = {name: _variant(name, directory) for name, directory in sources.variants.items()}
    return {
        "format": FORMAT,
        "model": sources.model,
        "task": served.task,
        "generation": scoreboard["generation"],
        "architecture": architecture,
        "lengths": token_lengths(sources.tokenized),
        "dtypes": _dtypes(sources.merged, variants),
        "data": _data(sources),
        "training": _record(sources.adapter / "training.json", drop=("quantized_modules",)),
        "merge": _record(sources.merged / "merge.json", drop=("modules",)),
        "variants": variants,
        "prompts": [prompt.as_json() for prompt in prompts],
        "served": {
            "task": served.task,
            "input_columns": dict(served.input_columns),
            "output_columns": dict(served.output_columns) if served.output_columns else None,
            "context_tokens": architecture["context_tokens"],
            **served.asked(prompts),
        },
        "base": served.base,
        "row_format": served.pinned_format(prompts),
        "fingerprints": sources.fingerprints(),
        "files": file_hashes(sources.placed()),
        "scoreboard": scoreboard,
        "scores": _scores(sources.evaluation, scoreboard),
        "tags": dict(tags),
    }


def token_lengths(tokenized: Path) -> dict[str, dict[str, int]]:
    """Percentiles of prompt and completion tokens over the training rows: `{"prompt": {"p50": 83, ...}, ...}`."""
    rows = TokenFile(tokenized, "train")
    prompt = rows.numbers("prompt_tokens")
    completion = rows.lengths - prompt
    return {
        name: {f"p{q}": int(np.percentile(lengths, q, method="higher")) for q in PERCENTILES}
        for name, lengths in (("prompt", prompt), ("completion", completion))
    }


def file_hashes(placed: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every placed file by its path in the version, from the manifests where there are any."""
    hashes: dict[str, str] = {}
    for target, directory in placed.items():
        manifest = directory / MANIFEST
        if manifest.exists():
            files = json.loads(manifest.read_text())["files"]
            hashes |= {f"{target}/{name}": entry["sha256"] for name, entry in files.items()}
        else:
            paths = sorted(path for path in directory.rglob("*") if path.is_file())
            hashes |= {f"{target}/{p.relative_to(directory).as_posix()}": file_sha256(p) for p in paths}
    return hashes


def stored_bytes(version: Path, metadata: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of each part of a version's directory: `merged`, each variant, the adapter and the evaluation."""
    parts = {MERGED: MODEL_PATH, **{name: made["path"] for name, made in metadata["variants"].items()}}
    parts |= {"adapter": ADAPTER_PATH, "evaluation": EVALUATION_PATH}
    return {
        name: sum(file.stat().st_size for file in (version / path).rglob("*") if file.is_file())
        for name, path in parts.items()
    }


def _architecture(merged: Path) -> dict[str, Any]:
    shape = read_architecture(merged)
    config = json.loads((merged / "config.json").read_text())
    return {
        "class": (config.get("architectures") or ["unknown"])[0],
        "parameters": shape.weight_bytes // shape.dtype_bytes,
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden": shape.hidden,
        "vocabulary": shape.vocabulary,
        "context_tokens": shape.context_tokens,
        "kv_bytes_per_token": shape.kv_bytes_per_token,
    }


def _dtypes(merged: Path, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The checkpoint's own type, and per variant the type activations are computed in and the KV cache is kept in."""
    config = json.loads((merged / "config.json").read_text())
    preferred = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    serving, kv_cache = {MERGED: preferred}, {MERGED: preferred}
    for name, made in variants.items():
        on_llama_cpp = made.get("engine") == "llama_cpp"  # which computes in float32 and keeps the cache in float16
        serving[name] = "float32" if on_llama_cpp else preferred
        kv_cache[name] = made.get("kv_cache") or ("float16" if on_llama_cpp else preferred)
    return {"preferred": preferred, "serving": serving, "kv_cache": kv_cache}


def _scores(evaluation: Path, scoreboard: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Mean of the primary metric and its bootstrap interval, per candidate whose answers say anything about it."""
    rows = read_answer_rows(evaluation)
    scores: dict[str, dict[str, Any]] = {}
    for candidate in scoreboard["candidates"]:
        own = list(primary_scores(rows, candidate, scoreboard["primary"]).values())
        if own:
            scores[candidate] = improvement(own, [0.0] * len(own), RESAMPLES, seed=0).as_dict()
    return scores


def _data(sources: VersionSources) -> dict[str, Any]:
    """Rows ingested, kept and dropped, and what the tokenizer made of them."""
    report = _record(sources.chat / "report.json", drop=()) if sources.chat else {}
    statistics = _record(sources.tokenized / "statistics.json", drop=())
    return {"rows": report, "tokens": {name: value for name, value in statistics.items() if _is_plain(value)}}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))


def _variant(name: str, directory: Path) -> dict[str, Any]:
    made = _record(directory / "quantization.json", drop=("calibration_row_ids",))
    return {**made, "path": f"{VARIANTS_PATH}/{name}"}


def _record(path: Path, drop: tuple[str, ...]) -> dict[str, Any]:
    record = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in record.items() if key not in drop}
