"""What a saved adapter adds to each weight: `scale * B @ A`, with the scale of that module.

Patterns, rsLoRA and DoRA change the formula per module and are honoured; an adapter with anything else is refused,
because a merge that skips a tensor answers like neither the base nor the adapter.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.adapted_model import ADAPTER_CONFIG, ADAPTER_FILE

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
LORA = re.compile(r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.default)?(\.weight)?$")


class AdapterUnmergeable(LLMAssetsError):
    """An adapter uses something a merge here cannot reproduce exactly."""


@dataclass(frozen=True)
class ModuleDelta:
    """Adapter of one linear layer.

    Attributes:
        a: float32, shape `(rank, inputs)`.
        b: float32, shape `(outputs, rank)`.
        scale: Factor on `b @ a`.
        magnitude: float32, shape `(outputs,)`, for DoRA.
    """

    a: "torch.Tensor"
    b: "torch.Tensor"
    scale: float
    magnitude: "torch.Tensor | None" = None

    def matrix(self) -> "torch.Tensor":
        """`scale * b @ a`, float32, shape `(outputs, inputs)`."""
        return (self.b @ self.a) * self.scale

    def apply(self, weight: "torch.Tensor") -> "torch.Tensor":
        """The layer's weight with the adapter, float32; DoRA rescales each output row to its magnitude."""
        merged = weight.float() + self.matrix()
        if self.magnitude is None:
            return merged
        return merged * (self.magnitude / merged.norm(dim=1)).unsqueeze(1)


@dataclass(frozen=True)
class Adapter:
    """A saved adapter by weight name of the base model: deltas, and weights it replaces whole (modules_to_save)."""

    deltas: Mapping[str, ModuleDelta]
    replaced: Mapping[str, "torch.Tensor"]

    @property
    def weights(self) -> set[str]:
        """Names of every base weight the adapter changes."""
        return {*self.deltas, *self.replaced}


def read_adapter(directory: Path) -> Adapter:
    """Read a LoRA adapter as peft saves it.

    Raises:
        AdapterUnmergeable: it is not LoRA, trains biases, or holds tensors this merge does not know.
    """
    from safetensors.torch import load_file

    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    _refuse_unknown(config)
    parts: dict[str, dict[str, Any]] = {}
    replaced = {}
    for name, tensor in load_file(directory / ADAPTER_FILE).items():
        found = LORA.match(name.removeprefix(PREFIX))
        if found:
            parts.setdefault(found["module"], {})[found["part"]] = tensor.float()
        elif name.endswith((".weight", ".bias")):
            replaced[name.removeprefix(PREFIX).replace(".modules_to_save.default", "")] = tensor
        else:
            raise AdapterUnmergeable(f"A merge does not know adapter tensors like {name}. Train plain LoRA.")
    return Adapter({f"{module}.weight": _delta(module, found, config) for module, found in parts.items()}, replaced)


def _delta(module: str, parts: Mapping[str, Any], config: Mapping[str, Any]) -> ModuleDelta:
    if not {"lora_A", "lora_B"} <= parts.keys():
        raise AdapterUnmergeable(f"The adapter has {', '.join(sorted(parts))} for {module}, not lora_A and lora_B.")
    rank = parts["lora_A"].shape[0]
    alpha = _of_module(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return ModuleDelta(parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude_vector"))


def _of_module(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Value of the first pattern that ends at a module's name, as peft matches them."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    features = {
        "peft_type": config.get("peft_type") != "LORA",
        "bias": config.get("bias", "none") != "none",
        "lora_bias": bool(config.get("lora_bias")),
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "trainable_token_indices": bool(config.get("trainable_token_indices")),
        "target_parameters": bool(config.get("target_parameters")),
        "layer_replication": bool(config.get("layer_replication")),
    }
    used = [name for name, present in features.items() if present]
    if used:
        raise AdapterUnmergeable(
            f"The adapter uses {', '.join(f'{name}={config.get(name)}' for name in used)}, which this merge does not "
            "reproduce. Train plain LoRA on linear layers."
        )
