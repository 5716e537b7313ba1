"""What a version holds and says about itself, gathered from the published artifacts it is made of.

Whoever runs a version should never need the lineage that made it: generation settings, prompt lengths to plan memory
for, file hashes and the scoreboard travel with the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_assets.engine.architecture import read_architecture
from llm_assets.evaluation.evaluate import quality, read_scoreboard
from llm_assets.training.identity import MANIFEST, directory_fingerprint, file_sha256, settings_digest

FORMAT = 1  # raise when a version's layout or metadata changes, so that older versions are registered anew
PERCENTILES = (50, 90, 99, 100)
MODEL_PATH, VARIANTS_PATH, EVALUATION_PATH = "artifacts/model", "artifacts/quantized", "artifacts/evaluation"


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
    """

    model: str
    merged: Path
    variants: Mapping[str, Path]
    adapter: Path
    tokenized: Path
    evaluation: Path

    def fingerprints(self) -> dict[str, str]:
        """Content fingerprint of each source by its asset path."""
        named = {
            "merged_model": self.merged,
            **{f"quantized/{name}": directory for name, directory in self.variants.items()},
            "lora_adapter": self.adapter,
            "tokenized_dataset": self.tokenized,
            "evaluation": self.evaluation,
        }
        return {name: directory_fingerprint(directory) for name, directory in named.items()}

    def placed(self) -> dict[str, Path]:
        """Where each stored directory goes in the version."""
        return {
            MODEL_PATH: self.merged,
            **{f"{VARIANTS_PATH}/{name}": directory for name, directory in self.variants.items()},
            EVALUATION_PATH: self.evaluation,
        }


def identity(name: str, sources: VersionSources) -> str:
    """Digest of everything that makes a version what it is; measured speeds and the run that made it are left out."""
    fingerprints = sources.fingerprints()
    fingerprints.pop("evaluation")  # holds measured latencies: what counts of it is the scoreboard's quality
    scoreboard = quality(read_scoreboard(sources.evaluation))
    return settings_digest({"format": FORMAT, "name": name, "sources": fingerprints, "quality": scoreboard})


def describe(sources: VersionSources, tags: Mapping[str, str]) -> dict[str, Any]:
    """The version's metadata, JSON-serialisable.

    Returns:
        `generation`, `architecture`, `lengths` (percentiles of prompt and completion tokens), `training`, `merge`,
        `variants`, `fingerprints`, `files` (path in the version to SHA-256), `scoreboard` and `tags`.
    """
    scoreboard = read_scoreboard(sources.evaluation)
    return {
        "model": sources.model,
        "generation": scoreboard["generation"],
        "architecture": _architecture(sources.merged),
        "lengths": token_lengths(sources.tokenized),
        "training": _record(sources.adapter / "training.json", drop=("quantized_modules",)),
        "merge": _record(sources.merged / "merge.json", drop=("modules",)),
        "variants": {name: _variant(name, directory) for name, directory in sources.variants.items()},
        "fingerprints": sources.fingerprints(),
        "files": file_hashes(sources.placed()),
        "scoreboard": scoreboard,
        "tags": dict(tags),
    }


def token_lengths(tokenized: Path) -> dict[str, dict[str, int]]:
    """Percentiles of prompt and completion tokens over the training rows: `{"prompt": {"p50": 83, ...}, ...}`."""
    rows = pq.read_table(tokenized / "train.parquet", columns=["input_ids", "prompt_tokens"])
    prompt = rows["prompt_tokens"].to_numpy()
    completion = pc.list_value_length(rows["input_ids"]).to_numpy() - prompt  # type: ignore[attr-defined]
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


def _variant(name: str, directory: Path) -> dict[str, Any]:
    made = _record(directory / "quantization.json", drop=("calibration_row_ids",))
    return {**made, "path": f"{VARIANTS_PATH}/{name}"}


def _record(path: Path, drop: tuple[str, ...]) -> dict[str, Any]:
    record = json.loads(path.read_text()) if path.exists() else {}
    return {key: value for key, value in record.items() if key not in drop}
