"""The weights that training changes, as one file: of the best evaluation, and in checkpoints of shared out weights.

Names are those of the model's parameters, so a file fits the same model alone as in any number of processes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.training import ranks, sharding

if TYPE_CHECKING:
    import torch


def count(model: Any) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def gathered(model: Any) -> "dict[str, torch.Tensor]":
    """The weights that training changes, by name, on the host of the first process; the others get none.

    Every process must ask for what is shared out. No device ever holds more than one of them whole.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (value := sharding.whole_on_first(parameter.detach())) is not None:
            weights[name] = value.contiguous()
    return weights


def save(model: Any, path: Path) -> None:
    """Have the first process write the weights that training changes to one file, whole or not at all."""
    from safetensors.torch import save_file

    weights = gathered(model)
    if not ranks.is_first():
        return
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(weights, partial)
    partial.replace(path)


def load(model: Any, path: Path) -> None:
    """Put the weights that `save` wrote back."""
    import torch
    from safetensors import safe_open

    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118 - not a mapping
            parameters[name].copy_(sharding.shared_like(file.get_tensor(name), parameters[name]))
