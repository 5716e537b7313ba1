"""Weights shared out over the processes that train together, for models that do not fit one device: PyTorch's FSDP2.

Each process holds a slice of every weight, gradient and optimiser moment, and gathers a decoder layer while it runs.
The steps and their losses are those of one process. The cost is traffic: every forward pass sends the weights around
twice, and the model is read into the memory of the host once per process before its slices go to the devices.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_assets.training import ranks
from llm_assets.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import torch


def is_shared_out(config: TrainingConfig) -> bool:
    """Whether this run's weights are; a process alone has nobody to share with."""
    return config.sharding == "full" and ranks.world() > 1


def share_out(model: Any, inner: Any, config: TrainingConfig, device: str) -> None:
    """Slice a model's weights in place and move this process's slices to its device.

    Args:
        model: The model as it is called, adapter included.
        inner: The transformers model inside it; its decoder layers are gathered one at a time.
        config: For method full, products take weights gathered in `compute_dtype`; the slices stay in float32.
        device: Such as `cuda:1` or `cpu`.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.split(":", maxsplit=1)[0], (ranks.world(),))
    gathered_as = getattr(torch, config.compute_dtype) if config.method == "full" else None
    policy = MixedPrecisionPolicy(param_dtype=gathered_as, reduce_dtype=torch.float32)
    layers = [module for module in inner.modules() if type(module).__name__ in inner._no_split_modules]
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """A tensor gathered from all processes, each of which must ask; one that is not shared out, as it is."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: "torch.Tensor") -> "torch.Tensor":
    """What this process holds of a tensor: its slice where that is shared out, else all of it."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensor: "torch.Tensor") -> "torch.Tensor | None":
    """A tensor gathered onto the host of the first process, None in the others; each process must ask."""
    gathered = whole(tensor)
    return gathered.cpu() if ranks.is_first() else None


def shared_like(tensor: "torch.Tensor", parameter: "torch.Tensor") -> "torch.Tensor":
    """This process's slice of a whole tensor, cut as a parameter of that shape is; as it is where that is not cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def whole_state(optimizer: Any) -> dict[str, Any]:
    """An optimiser's state with every moment on the host of the first process; each process must ask.

    The others get None for a moment, and no device ever holds more than one of them whole.
    """
    state = optimizer.state_dict()
    moments = {
        number: {name: _on_first(value) for name, value in values.items()} for number, values in state["state"].items()
    }
    return {**state, "state": moments}


def take_whole_states(optimizer: Any) -> None:
    """Let an optimiser load what `whole_state` gave."""

    def cut(optimizer: Any, state: Mapping[str, Any]) -> dict[str, Any]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {name: _cut(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": moments}

    optimizer.register_load_state_dict_pre_hook(cut)


def _on_first(value: Any) -> Any:
    import torch

    return whole_on_first(value) if isinstance(value, torch.Tensor) else value


def _cut(value: Any, parameter: "torch.Tensor") -> Any:
    import torch

    return shared_like(value, parameter) if isinstance(value, torch.Tensor) else value
