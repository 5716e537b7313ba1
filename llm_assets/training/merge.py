"""Fold an adapter into its base, one tensor at a time: peak memory is a few copies of the largest tensor.

A QLoRA adapter was trained on top of dequantised NF4 weights. `trained_function` therefore merges into those, for
exactly the modules that were quantised, and reproduces what was trained; `original_base` merges into the original
weights, a better model the adapter has never seen. Neither always scores higher, so merge.json records the choice and
how large the adapter is beside what each step loses.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llm_assets.core import Config, LLMAssetsError
from llm_assets.training import shards
from llm_assets.training.adapter_delta import Adapter, AdapterUnmergeable, read_adapter

if TYPE_CHECKING:
    import torch

NF4_BLOCK_SIZE = 64
SAMPLED_ROWS = 256
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip


class DiskTooSmall(LLMAssetsError):
    """The merged model would not fit on the disk."""


SAMPLED_ROWS = 256


class MergeConfig(Config):
    """How an adapter is merged and stored."""

    policy: Literal["trained_function", "original_base"] = Field(
        default="trained_function",
        description="trained_function: into the 4-bit weights as training saw them; original_base: into the originals.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16",
        description="Stored type. float16 keeps 8 times more of a small adapter where values fit its range.",
    )
    equivalence_rows: int = Field(
        default=64, ge=1, description="Validation rows on which merged and adapter are compared."
    )
    max_mean_kl: float = Field(
        default=0.02, gt=0, description="Mean KL divergence allowed between adapter and merged model, nats per token."
    )
    min_top1_agreement: float = Field(
        default=0.97, gt=0, le=1, description="Share of tokens on which both must rank the same token first."
    )


def merge_adapter(
    base: Path, adapter: Path, out: Path, config: MergeConfig, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write the merged model as a Hugging Face directory, with `merge.json`, and return that record.

    Args:
        base: The base the adapter was trained on.
        adapter: Directory of a training run, with its `training.json`.
        out: Where the model is written.
        config: Policy and stored type.
        log: Receives a line per shard.

    Raises:
        AdapterUnmergeable: the adapter has features or tensors a merge cannot reproduce.
        DiskTooSmall: the model would not fit; nothing has been written then.
    """
    training = json.loads((adapter / "training.json").read_text())
    full = training["method"] == "full"
    source = adapter if full else base
    names = shards.shard_names(source)
    contents = {name: shards.entries(source / name) for name in names}
    changes = Adapter({}, {}) if full else read_adapter(adapter)
    _refuse_unused(changes, {entry.name for tensors in contents.values() for entry in tensors})
    _require_room(out, sum(e.values for t in contents.values() for e in t) * shards.BYTES[config.dtype])

    merge = _Merge(changes, config, training, [])
    for number, name in enumerate(names, 1):
        merge.shard(source / name, out / name, contents[name])
        log(f"merged shard {number} of {len(names)}: {name}, {len(contents[name])} tensors")
    shards.write_index(out, contents, config.dtype)
    _write_configs(base, adapter, out, config.dtype, training["end_token_ids"])
    record = merge.record()
    (out / "merge.json").write_text(json.dumps(record, indent=1, sort_keys=True))
    return record


@dataclass(frozen=True)
class _Merge:
    """One merge under way: what changes, how, and the statistics of the modules merged so far."""

    changes: Adapter
    config: MergeConfig
    training: dict[str, Any]
    statistics: list[dict[str, Any]]

    def shard(self, source: Path, target: Path, tensors: list[shards.TensorEntry]) -> None:
        from safetensors import safe_open

        with safe_open(source, framework="pt") as file, shards.writing(target, tensors, self.config.dtype) as writer:
            for entry in tensors:
                writer.write(self.tensor(entry.name, file.get_tensor(entry.name)))

    def tensor(self, name: str, weight: "torch.Tensor") -> "torch.Tensor":
        if name in self.changes.replaced:
            return self.changes.replaced[name]
        quantized = name.removesuffix(".weight") in self.training["quantized_modules"]
        in_training = nf4_round_trip(weight, self.training["quantization"]["compute_dtype"]) if quantized else weight
        start = in_training if self.config.policy == "trained_function" else weight
        delta = self.changes.deltas.get(name)
        if delta is None:
            return start
        merged = delta.apply(start)
        sizes = _sizes(weight, in_training, start, merged, self.config.dtype)
        self.statistics.append({"name": name, **sizes})
        return merged

    def record(self) -> dict[str, Any]:
        def mean(name: str) -> float:
            return sum(entry[name] for entry in self.statistics) / max(1, len(self.statistics))

        quantized = len(self.training["quantized_modules"])
        return {
            "policy": self.config.policy,
            "dtype": self.config.dtype,
            "method": self.training["method"],
            "merged_modules": len(self.statistics),
            "replaced_tensors": len(self.changes.replaced),
            "round_tripped_modules": quantized if self.config.policy == "trained_function" else 0,
            "mean_delta_share": mean("delta_share"),
            "mean_rounding_share": mean("rounding_share"),
            "mean_quantization_share": mean("quantization_share"),
            "modules": self.statistics,
        }


def nf4_round_trip(weight: "torch.Tensor", compute_dtype: str) -> "torch.Tensor":
    """The values a weight has in double-quantised NF4, in the type it was computed with in training.

    Uses the kernels training uses, on the GPU where there is one.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from llm_assets.training.adapted_model import training_device

    loaded = weight.to(training_device(), getattr(torch, compute_dtype))
    packed, state = quantize_4bit(loaded, blocksize=NF4_BLOCK_SIZE, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state).cpu()


def _sizes(
    weight: "torch.Tensor", in_training: "torch.Tensor", start: "torch.Tensor", merged: "torch.Tensor", dtype: str
) -> dict[str, float]:
    """The adapter's change beside the weight; beside it, what storing rounds away and what 4 bit moved.

    Estimated on evenly spaced rows: shares hardly differ between rows, and all of them would double the merge's time.
    """
    import torch

    rows = slice(None, None, max(1, len(weight) // SAMPLED_ROWS))
    weight, in_training, merged = weight[rows], in_training[rows], merged[rows]
    change = merged - start[rows].float()
    size = change.norm().clamp(min=torch.finfo(torch.float32).tiny)
    stored = merged.to(getattr(torch, dtype)).float()
    return {
        "delta_share": float(size / weight.float().norm()),
        "rounding_share": float((stored - merged).norm() / size),
        "quantization_share": float((weight.float() - in_training.float()).norm() / size),
    }


def _refuse_unused(changes: Adapter, names: set[str]) -> None:
    unused = sorted(changes.weights - names)
    if unused:
        raise AdapterUnmergeable(
            f"The base has no tensor {unused[0]} that the adapter changes ({len(unused)} such). Either the adapter "
            "belongs to another base, or a trained head is tied to the embeddings: train it untied."
        )


def _require_room(out: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise DiskTooSmall(
            f"The merged model needs {needed_bytes / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free. "
            "Free space or point LLM_ASSETS_HOME at a larger disk."
        )


def _write_configs(base: Path, adapter: Path, out: Path, dtype: str, end_token_ids: list[int]) -> None:
    """Copy config, generation config and tokenizer; the model must stop at every token it was trained to end with."""
    config = json.loads((base / "config.json").read_text())
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": dtype}, indent=2, sort_keys=True))
    path = base / "generation_config.json"
    generation = json.loads(path.read_text()) if path.exists() else {}
    generation["eos_token_id"] = sorted({*token_ids(generation.get("eos_token_id")), *end_token_ids})
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True))
    for name in TOKENIZER_FILES:
        if (adapter / name).exists():
            shutil.copyfile(adapter / name, out / name)


def token_ids(value: int | list[int] | None) -> list[int]:
    """A config's token id setting as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
