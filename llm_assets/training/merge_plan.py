"""What a merge will write, decided and refused from headers alone: before a weight is read or a byte is written.

A base with tied embeddings keeps one matrix for both ends while the adapter treats both alike. An adapter that changes
one end only cannot be stored so: the head is then written on its own, which is what was trained. (peft's own merge
changes the shared matrix, and so both ends, without a word.)
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.training import base_match
from llm_assets.training.adapter_reader import Adapter, AdapterUnmergeable, Change, read_adapter
from llm_assets.training.quantized_base import require_reproducible
from llm_assets.training.shard_writer import Announced, DiskTooSmall
from llm_assets.training.shards import TensorEntry, model_entries, read_rows

HEAD = "lm_head.weight"
INPUT_ROWS = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Planned:
    """One tensor of the merged model.

    Attributes:
        output: As it will be stored.
        source: The base's tensor it starts from.
        change: What the adapter does to it, if anything.
        quantized: Whether training saw it in 4 bit.
    """

    output: Announced
    source: TensorEntry
    change: Change | None
    quantized: bool


@dataclass(frozen=True)
class Plan:
    """Every tensor of the merged model by file, in order.

    Attributes:
        tied: Whether the output head is the embedding matrix.
        untied: Whether it was so in the base and no longer is.
    """

    shards: Mapping[str, list[Planned]]
    tied: bool
    untied: bool

    @property
    def tensors(self) -> list[Planned]:
        """All tensors."""
        return [planned for shard in self.shards.values() for planned in shard]

    @property
    def bytes(self) -> int:
        """Size of all weights as stored."""
        return sum(planned.output.bytes for planned in self.tensors)


def plan_merge(base: Path, adapter: Path, out: Path, dtype: str, training: Mapping[str, Any]) -> Plan:
    """Decide what every tensor of the merged model is made of.

    Args:
        base: The base the adapter was trained on.
        adapter: Directory of a training run.
        out: Where the model will be written, to see that there is room.
        dtype: Stored type.
        training: The run's `training.json`.

    Raises:
        AnotherBase: vocabulary, tensors, shapes or fingerprint are not those of the base the adapter was trained on.
        AdapterUnmergeable: the adapter cannot be reproduced, or lacks a tensor.
        DiskTooSmall: the merged model would not fit.
    """
    full = training["method"] == "full"
    tied = bool(json.loads((base / "config.json").read_text()).get("tie_word_embeddings"))
    shards = model_entries(base)
    base_match.refuse_other_vocabulary(base, adapter)
    if full:
        stored = model_entries(adapter)
        base_match.refuse_other_shapes(_by_name(shards, tied), _by_name(stored, tied))
        shards, found = stored, Adapter()
    else:
        found = read_adapter(adapter)
    weights = _by_name(shards, tied)
    changes, untied = _untie(found.changes, weights, tied)
    if untied:
        weights[HEAD] = weights[INPUT_ROWS]
    base_match.refuse_mismatch(changes, weights)
    base_match.refuse_missing(found, weights)
    quantized = set(training["quantized_modules"])
    base_match.refuse_other_modules(quantized, weights)
    require_reproducible(training["quantization"], sorted(quantized))
    base_match.refuse_other_fingerprint(base, training)
    plan = Plan(_shards(shards, weights, changes, quantized, dtype), tied and not untied, untied)
    require_room(out, plan.bytes)
    return plan


def _by_name(shards: Mapping[str, list[TensorEntry]], tied: bool) -> dict[str, TensorEntry]:
    """Tensors by name; a tied model loads its head from the embeddings, whatever it stores beside them."""
    found = {entry.name: entry for entries in shards.values() for entry in entries}
    return {name: entry for name, entry in found.items() if not (tied and name == HEAD and INPUT_ROWS in found)}


def _untie(
    changes: Mapping[str, Change], weights: Mapping[str, TensorEntry], tied: bool
) -> tuple[dict[str, Change], bool]:
    """Changes by stored weight, and whether the head needs a matrix of its own."""
    ends = [changes[name] for name in (INPUT_ROWS, HEAD) if name in changes]
    if not tied or not ends or INPUT_ROWS not in weights:
        return dict(changes), False
    if any(change.kind == "token_rows" for change in ends):
        if len(ends) == 2:
            raise AdapterUnmergeable(
                "The adapter trains single tokens of the embeddings and changes the head that is tied to them. Remove "
                "lm_head from training.target_modules and training.modules_to_save, or trainable_tokens."
            )
        return dict(changes), False  # peft trains a token's row for both ends of a tied matrix
    if len(ends) == 2 and _same_change(ends[0], ends[1]):
        return {name: change for name, change in changes.items() if name != HEAD}, False
    return dict(changes), True


def _same_change(embeddings: Change, head: Change) -> bool:
    """Whether both ends were trained as one matrix (peft's ensure_weight_tying), and so stay tied."""
    if embeddings.kind != head.kind or embeddings.shape != head.shape or embeddings.scale != head.scale:
        return False
    if embeddings.kind == "replaced":
        return bool((read_rows(embeddings.parts["values"]) == read_rows(head.parts["values"])).all())
    ours = [read_rows(embeddings.parts[part]).T for part in "ba"]  # an embedding's pair is the transposed of a head's
    theirs = [read_rows(head.parts[part]) for part in "ab"]
    return all(one.shape == other.shape and bool((one == other).all()) for one, other in zip(ours, theirs, strict=True))


def _shards(
    shards: Mapping[str, list[TensorEntry]],
    weights: Mapping[str, TensorEntry],
    changes: Mapping[str, Change],
    quantized: set[str],
    dtype: str,
) -> dict[str, list[Planned]]:
    """The base's files and order, an untied head behind its embeddings."""

    def planned(name: str) -> Planned:
        source = weights[name]
        output = Announced(name, dtype if source.is_float else source.dtype, source.shape)
        return Planned(output, source, changes.get(name), name.removesuffix(".weight") in quantized)

    extra = set(weights) - {entry.name for entries in shards.values() for entry in entries}
    return {
        file: [
            planned(name)
            for entry in entries
            for name in ([entry.name, HEAD] if entry.name == INPUT_ROWS and HEAD in extra else [entry.name])
            if name in weights
        ]
        for file, entries in shards.items()
    }


def require_room(out: Path, needed_bytes: int) -> None:
    """Raise `DiskTooSmall` unless the disk of `out` has that many bytes free."""
    free = shutil.disk_usage(out).free
    if free < needed_bytes:
        raise DiskTooSmall(
            f"The merged model needs {needed_bytes / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free. "
            "Free space or point LLM_ASSETS_HOME at a larger disk."
        )
