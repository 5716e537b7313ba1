"""Fold an adapter into its base, a block of rows at a time: the size of a model decides the time, never the memory.

A QLoRA adapter was trained on top of dequantised NF4 weights. Policy `dequantized` therefore merges into those, for
exactly the modules that were quantised, and reproduces what was trained; `original` merges into the original weights, a
better model the adapter has never seen. Neither always scores higher: `merge_choice` measures both. A tensor that stays
as it is goes from file to file without passing through this process. Memory at its highest is a few blocks, one
module's adapter and, for a module that was in 4 bit, a quarter of its size.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.adapter_delta import row_blocks
from llm_assets.training.block_memory import BlockMemory
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merge_plan import Plan, Planned, plan_merge
from llm_assets.training.merge_statistics import ChangeSizes
from llm_assets.training.quantized_base import nf4_round_trip
from llm_assets.training.shard_writer import ShardWriter, writing
from llm_assets.training.shards import read_rows, write_index

if TYPE_CHECKING:
    import torch

RECORD = "merge.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt",
)  # fmt: skip


class PolicyOpen(LLMAssetsError):
    """A merge was asked to use policy auto without the rows that decide it."""


def merge_adapter(
    base: Path, adapter: Path, out: Path, config: MergeConfig, log: Callable[[str], None]
) -> dict[str, Any]:
    """Write the merged model as a Hugging Face directory, with `merge.json`, and return that record.

    Args:
        base: The base the adapter was trained on.
        adapter: Directory of a training run, with its `training.json`; for method full, the trained model itself.
        out: An existing directory; the model is written there.
        config: Policy and stored type.
        log: Receives a line per shard.

    Raises:
        AnotherBase: the adapter was trained on another base. Nothing has been written then, nor after the next one.
        AdapterUnmergeable: the adapter has features or tensors a merge cannot reproduce, or lacks some.
        DiskTooSmall: the model would not fit, or the disk filled up.
        WeightsOverflow: a merged value is not finite in the stored type; names the tensor.
        PolicyOpen: the policy is auto, which `merge_choice.merge_by_policy` decides.
    """
    if config.policy == "auto":
        raise PolicyOpen("merge_adapter merges by one policy. Call merge_by_policy for auto, or name the policy.")
    training = json.loads((adapter / "training.json").read_text())
    plan = plan_merge(base, adapter, out, config.dtype, training)
    if plan.untied:
        log("the adapter changes one end of tied embeddings: the output head is stored on its own")
    merge = _Merge(config, training)
    for number, (name, tensors) in enumerate(plan.shards.items(), 1):
        with writing(out / name, [planned.output for planned in tensors]) as writer:
            for planned in tensors:
                merge.tensor(planned, writer)
        log(f"merged shard {number} of {len(plan.shards)}: {name}, {len(tensors)} tensors")
    write_index(out, {name: [p.output.name for p in tensors] for name, tensors in plan.shards.items()}, plan.bytes)
    _write_configs(base, adapter, out, config.dtype, plan.tied, training["end_token_ids"])
    record = merge.record(plan)
    (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
    return record


@dataclass(frozen=True)
class _Merge:
    """One merge under way: how, and the statistics of the weights changed so far."""

    config: MergeConfig
    training: dict[str, Any]
    statistics: list[dict[str, Any]] = field(default_factory=list)
    memory: BlockMemory = field(default_factory=BlockMemory)

    def tensor(self, planned: Planned, writer: ShardWriter) -> None:
        """Write one tensor: as it is, in another type, or changed."""
        in_training = planned.quantized and self.config.policy == "dequantized"
        if planned.change is None and not in_training and planned.source.dtype == planned.output.dtype:
            writer.copy(planned.source)
        elif planned.change is None:
            for _, rows in self._starting_blocks(planned):
                writer.append(rows)
        else:
            self._changed(planned, writer)

    def _changed(self, planned: Planned, writer: ShardWriter) -> None:
        assert planned.change
        delta = planned.change.load()
        sizes = ChangeSizes(planned.source.shape[0])
        for first, rows in self._starting_blocks(planned):
            before = self.memory.take("weight", tuple(rows.shape), "float32").copy_(rows)
            start = sizes.sampled(before, first).clone()  # apply may overwrite its rows
            merged = delta.apply(before, first, self.memory)
            stored = writer.append(merged)
            sizes.add(start, sizes.sampled(merged, first), sizes.sampled(stored, first))
        if planned.quantized:
            self._measure_quantization(planned, sizes)
        self.statistics.append({"name": planned.output.name, "kind": planned.change.kind, **sizes.shares()})

    def _starting_blocks(self, planned: Planned) -> Iterator[tuple[int, "torch.Tensor"]]:
        """First row and rows of every block of the weight that the change is added to."""
        entry, spans = planned.source, row_blocks(planned.source.shape)
        blocks = (read_rows(entry, *span, self.memory) for span in spans)
        if planned.quantized and self.config.policy == "dequantized":
            blocks = nf4_round_trip(blocks, self.training["quantization"]["compute_dtype"])
        for (first, _), rows in zip(spans, blocks, strict=True):
            yield first, rows

    def _measure_quantization(self, planned: Planned, sizes: ChangeSizes) -> None:
        """What 4 bits moved, on the sampled rows alone: a round trip of the whole weight would cost as much again."""
        import torch

        rows = [read_rows(planned.source, row, row + 1) for row in range(0, sizes.rows, sizes.step)]
        original = torch.cat(rows)
        (in_training,) = nf4_round_trip([original], self.training["quantization"]["compute_dtype"])
        sizes.add_quantization(original, in_training)

    def record(self, plan: Plan) -> dict[str, Any]:
        """What was done, for `merge.json`: the policy, and every module's change beside what is lost of it."""
        low_rank = [entry for entry in self.statistics if entry["kind"] == "low_rank"]

        def mean(name: str) -> float:
            return sum(entry[name] for entry in low_rank) / max(1, len(low_rank))

        changes = [planned.change for planned in plan.tensors if planned.change]
        quantized = sum(planned.quantized for planned in plan.tensors)
        return {
            "policy": self.config.policy,
            "dtype": self.config.dtype,
            "method": self.training["method"],
            "merged_modules": len(low_rank),
            "replaced_tensors": sum(change.kind == "replaced" for change in changes),
            "trained_tokens": max((len(change.tokens) for change in changes), default=0),
            "untied_head": plan.untied,
            "quantized_modules": quantized,
            "round_tripped_modules": quantized if self.config.policy == "dequantized" else 0,
            "mean_delta_share": mean("delta_share"),
            "mean_rounding_share": mean("rounding_share"),
            "mean_quantization_share": mean("quantization_share"),
            "modules": self.statistics,
        }


def _write_configs(base: Path, adapter: Path, out: Path, dtype: str, tied: bool, end_token_ids: list[int]) -> None:
    """Copy config, generation config and tokenizer; the model must stop at every token it was trained to end with."""
    config = json.loads((base / "config.json").read_text())
    for outdated in ("torch_dtype", "quantization_config", "auto_map"):  # the merged model carries no code
        config.pop(outdated, None)
    config |= {"dtype": dtype, "tie_word_embeddings": tied}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
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
