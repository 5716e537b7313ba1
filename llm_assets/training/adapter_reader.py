"""Which weights a saved peft adapter changes, and how, told from its config and file header alone.

An adapter with anything this cannot reproduce is refused by the name of the setting or tensor, because a merge that
skips one answers like neither the base nor the adapter. Tensors are read when their weight is merged.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm_assets.core import LLMAssetsError
from llm_assets.training.adapted_model import ADAPTER_CONFIG, ADAPTER_FILE, AdapterEmpty
from llm_assets.training.adapter_delta import BiasShift, Delta, LowRank, Replaced, TokenRows
from llm_assets.training.shards import TensorEntry, entries, read_rows

PREFIX = "base_model.model."
PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_magnitude_vector|lora_embedding_A|lora_embedding_B|"
    r"token_adapter\.trainable_tokens_delta)(\.default)?(\.(?P<kind>weight|bias))?$"
)
LAYER = re.compile(r"\.(\d+)\.")

# Settings of peft's LoraConfig under which a weight is not `weight + scale * B @ A`, and the value that means "unused".
UNKNOWN_FEATURES = (
    "bias", "target_parameters", "layer_replication", "use_qalora", "use_bdlora", "arrow_config",
    "alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config", "megatron_config",
)  # fmt: skip

CHANGES_THE_BASE = {"pissa", "corda", "olora", "loftq", "lora_ga"}  # they move part of a weight into the adapter


class AdapterUnmergeable(LLMAssetsError):
    """An adapter uses something a merge here cannot reproduce exactly, or lacks a part."""


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight, its tensors still in the file.

    Attributes:
        weight: Name of the base's weight.
        parts: Tensors by what they are: a, b, magnitude; values; shift.
        tokens: Which rows `values` are, for token_rows.
    """

    weight: str
    kind: Literal["low_rank", "replaced", "token_rows", "bias"]
    parts: Mapping[str, TensorEntry]
    scale: float = 1.0
    transposed: bool = False
    tokens: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape a weight must have for this change; None where any number of rows will do."""
        if self.kind == "low_rank":
            whole = (self.parts["b"].shape[0], self.parts["a"].shape[1])
            return whole[::-1] if self.transposed else whole
        if self.kind == "token_rows":
            return None
        return self.parts["values" if self.kind == "replaced" else "shift"].shape

    def load(self) -> Delta:
        """The change with its tensors read."""
        import torch

        read = {part: read_rows(entry) for part, entry in self.parts.items()}
        if self.kind == "replaced":
            return Replaced(read["values"])
        read = {part: tensor.float() for part, tensor in read.items()}
        if self.kind == "token_rows":
            return TokenRows(torch.tensor(self.tokens), read["values"])
        if self.kind == "bias":
            return BiasShift(read["shift"], self.scale)
        return LowRank(read["a"], read["b"], self.scale, read.get("magnitude"), self.transposed)


@dataclass(frozen=True)
class Adapter:
    """A saved adapter: its changes by weight name, and the config it was saved with."""

    changes: Mapping[str, Change] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def read_adapter(directory: Path) -> Adapter:
    """Read what a LoRA adapter changes, as peft saves it.

    Raises:
        AdapterUnmergeable: it is not LoRA, lacks half of a pair, or has settings or tensors this merge does not know.
        AdapterEmpty: every B matrix is zero.
    """
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    _refuse_unknown(config)
    parts: dict[str, dict[str, TensorEntry]] = {}
    changes: list[Change] = []
    for entry in entries(directory / ADAPTER_FILE):
        name = entry.name.removeprefix(PREFIX)
        if found := PART.match(name):
            part = found["part"].replace("token_adapter.", "") + (".bias" if found["kind"] == "bias" else "")
            parts.setdefault(found["module"], {})[part] = entry
        elif name.endswith((".weight", ".bias")) and ".base_layer." not in name:
            weight = name.replace(".modules_to_save.default", "")
            changes.append(Change(weight, "replaced", {"values": entry}))
        else:
            raise AdapterUnmergeable(f"A merge does not know adapter tensors like {entry.name}. Train plain LoRA.")
    for module, found in parts.items():
        changes += _module_changes(module, found, config)
    _refuse_zero([change.parts["b"] for change in changes if change.kind == "low_rank"])
    return Adapter(_by_weight(changes), config)


def _module_changes(module: str, parts: dict[str, TensorEntry], config: Mapping[str, Any]) -> list[Change]:
    """Changes to one module's weight and bias."""
    names = parts.keys()
    if "trainable_tokens_delta" in names:
        if len(names) > 1:
            raise AdapterUnmergeable(f"The adapter trains single tokens of {module} and a LoRA on it. Train one.")
        entry = parts["trainable_tokens_delta"]
        return [Change(f"{module}.weight", "token_rows", {"values": entry}, tokens=_tokens(module, entry, config))]
    embedding = any(name.startswith("lora_embedding") for name in names)
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if not {a, b} <= names:
        raise AdapterUnmergeable(
            f"The adapter has {', '.join(sorted(names))} for {module}, not {a} and {b}. Materialize lora_adapter again."
        )
    magnitude = parts.get("lora_magnitude_vector")
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    if magnitude and transposed:
        raise AdapterUnmergeable(
            f"The adapter uses use_dora on {module}, whose weight is stored transposed; its norms run across rows. "
            "Leave that module out of target_modules, or train without DoRA."
        )
    scale = _scale(module, parts[a].shape[0], config)
    pair = {"a": parts[a], "b": parts[b]} | ({"magnitude": magnitude} if magnitude else {})
    changes = [Change(f"{module}.weight", "low_rank", pair, scale, transposed)]
    if shift := parts.get("lora_B.bias"):
        changes.append(Change(f"{module}.bias", "bias", {"shift": shift}, scale))
    return changes


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """The factor on B @ A, from the alpha of this module and the rank of its matrices."""
    expected = of_module(config.get("rank_pattern") or {}, module, config["r"])
    if rank != expected:
        raise AdapterUnmergeable(
            f"The adapter's matrices for {module} have rank {rank} and its config says {expected}: the two files do "
            "not belong together. Materialize lora_adapter again."
        )
    alpha = of_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def of_module(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """Value of the first pattern that ends at a module's name, as peft matches them."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _tokens(module: str, entry: TensorEntry, config: Mapping[str, Any]) -> tuple[int, ...]:
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, Mapping):
        # a tied head has no entry of its own: peft trains it through the embeddings
        indices = of_module(indices, module, [])
    if len(indices) != entry.shape[0]:
        raise AdapterUnmergeable(
            f"The adapter has {entry.shape[0]} trained tokens for {module} and its config names {len(indices)}: the "
            "two files do not belong together. Materialize lora_adapter again."
        )
    return tuple(indices)


def expected_weights(config: Mapping[str, Any], weights: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Weights of the base that an adapter with this config must change, from their names and shapes.

    Matches names as peft does: a list names whole modules or their last parts, a text is a pattern of the whole name.
    """
    targets, layers = config.get("target_modules") or [], config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    expected = set()
    for weight, shape in weights.items():
        module = weight.removesuffix(".weight")
        layer = LAYER.search(module)
        chosen = len(shape) == 2 and weight.endswith(".weight") and _named(module, targets)
        if chosen and layers is not None:
            chosen = layer is not None and int(layer[1]) in layers
        if chosen and _named(module, config.get("exclude_modules") or []):
            chosen = False
        if chosen or _saved_whole(module, config.get("modules_to_save") or []):
            expected.add(weight)
    return expected


def _saved_whole(module: str, names: list[str]) -> bool:
    """Whether a module is, or lies in, one of the modules to save, which peft matches by the end of the name."""
    parts = module.split(".")
    return any(".".join(parts[:depth]).endswith(tuple(names)) for depth in range(1, len(parts) + 1))


def _named(module: str, names: str | list[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_weight(changes: list[Change]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for change in changes:
        if change.weight in found:
            raise AdapterUnmergeable(f"The adapter changes {change.weight} in two ways. Train one of them.")
        found[change.weight] = change
    return found


def _refuse_zero(matrices: list[TensorEntry]) -> None:
    """An adapter that training never moved answers like the base."""
    if matrices and not any(read_rows(entry).any() for entry in matrices):
        raise AdapterEmpty(
            f"All {len(matrices)} B matrices of the adapter are zero: it would answer like the base. Train for more "
            "steps or with a higher learning_rate."
        )


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    used = [name for name in UNKNOWN_FEATURES if config.get(name) not in (None, False, "none", [], {})]
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.split("_niter_")[0].lower() in CHANGES_THE_BASE:
        used.append("init_lora_weights")
    if config.get("peft_type") != "LORA":
        used.insert(0, "peft_type")
    if used:
        raise AdapterUnmergeable(
            f"The adapter uses {', '.join(f'{name}={config.get(name)}' for name in used)}, which this merge does not "
            "reproduce. Train plain LoRA on linear layers."
        )
