"""How many GPUs of which type a model of some size is given, before anything about it is measured.

The published rule for fine-tuning on 80 GB A100s is the floor: 7B, 13B and 30B on one, 70B on two. More are asked for
where the weights alone need them. It is coarse on purpose: a request is made before a checkpoint is read, and the exact
plans (`training.memory_plan`, `engine.planner`) then use what was granted.
"""

from dataclasses import dataclass
from typing import Literal

from llm_assets.core import LLMAssetsError
from llm_assets.quantization.hardware import Hardware, find_gpu

Purpose = Literal["training", "serving"]
DEFAULT_GPU = "A100"
FLOOR = ((34e9, 1), (75e9, 2))  # parameters up to, A100s; models sold as 30B have up to 34e9, as 70B up to 75e9
USABLE_SHARE = 0.9
SERVING_SHARE = 1.05  # of the weights: one batch's working set and the smallest useful cache
TRAINING_BYTES = {  # per parameter
    "qlora": 0.7,  # 4 bits and block constants (0.52), with embeddings and norms in 16 bits
    "lora": 2.1,  # 16-bit weights and the adapter with its moments
    "full": 16.0,  # float32 weights, gradients and two moments
}
ACTIVATION_BYTES = 8 * 1024**3  # one recomputed pack and the logits of a chunk, with the runtime's own memory
MAX_GPUS = 8  # of one node


class TierTooSmall(LLMAssetsError):
    """The GPUs asked for cannot hold the model, or no node can."""


@dataclass(frozen=True)
class Tier:
    """GPUs for one task.

    Attributes:
        gpu_type: Short name in the table of known GPUs.
        num_gpus: GPUs of one node; a power of two, which attention heads can be shared over.
        needed_bytes: Memory the task was taken to need on all of them.
    """

    gpu_type: str
    num_gpus: int
    needed_bytes: int

    def pod_resources(self) -> dict[str, dict[str, str]]:
        """The `resources` of a container that runs the task on Kubernetes."""
        return {"limits": {"nvidia.com/gpu": str(self.num_gpus)}}


def needed_bytes(parameters: int, purpose: Purpose, *, method: str = "lora", bytes_per_parameter: float = 2.0) -> int:
    """Memory a model needs, from its size alone.

    Args:
        parameters: Number of weights.
        purpose: `training` counts by `method`, `serving` by `bytes_per_parameter`.
        method: `qlora`, `lora` or `full`.
        bytes_per_parameter: Size of a served weight: 2 in 16 bits, 0.5 and a little in 4.
    """
    if purpose == "serving":
        return round(parameters * bytes_per_parameter * SERVING_SHARE)
    return round(parameters * TRAINING_BYTES[method]) + ACTIVATION_BYTES


def gpu_tier(
    parameters: int,
    purpose: Purpose,
    *,
    gpu_type: str | None = None,
    method: str = "lora",
    bytes_per_parameter: float = 2.0,
) -> Tier:
    """The GPUs to request for a model.

    Args:
        parameters: Number of weights.
        purpose: `training` or `serving`.
        gpu_type: A known GPU; None is the A100, for which the published floor holds.
        method: As in `needed_bytes`.
        bytes_per_parameter: As in `needed_bytes`.

    Raises:
        UnknownHardware: no such GPU.
        TierTooSmall: not even eight of them hold it.
    """
    gpu = find_gpu(gpu_type or DEFAULT_GPU)
    wanted = needed_bytes(parameters, purpose, method=method, bytes_per_parameter=bytes_per_parameter)
    count = _power_of_two(wanted / _usable_bytes(gpu))
    if gpu.name == DEFAULT_GPU and bytes_per_parameter >= 2.0:
        count = max(count, next((gpus for limit, gpus in FLOOR if parameters <= limit), FLOOR[-1][1]))
    if count > MAX_GPUS:
        raise TierTooSmall(
            f"{parameters / 1e9:.1f}B parameters need {wanted / 1e9:,.0f} GB for {purpose}; {MAX_GPUS} x {gpu.name} "
            f"have {MAX_GPUS * _usable_bytes(gpu) / 1e9:,.0f} GB usable. {_remedy(purpose)}"
        )
    return Tier(gpu.name, count, wanted)


def refuse_too_small(
    gpu_type: str,
    num_gpus: int,
    parameters: int,
    purpose: Purpose,
    *,
    method: str = "lora",
    bytes_per_parameter: float = 2.0,
) -> None:
    """Refuse GPUs that cannot hold a model, before any of them is asked for.

    Raises:
        UnknownHardware: no such GPU.
        TierTooSmall: says what is needed and which number of these GPUs has it.
    """
    gpu = find_gpu(gpu_type)
    wanted = needed_bytes(parameters, purpose, method=method, bytes_per_parameter=bytes_per_parameter)
    if num_gpus * _usable_bytes(gpu) >= wanted:
        return
    enough = _power_of_two(wanted / _usable_bytes(gpu))
    ways = [f"{enough} x {gpu.name}"] if enough <= MAX_GPUS else []
    ways += [f"{other.num_gpus} x {other.gpu_type}" for other in _others(gpu, wanted)]
    raise TierTooSmall(
        f"{parameters / 1e9:.1f}B parameters need {wanted / 1e9:,.1f} GB for {purpose}; {num_gpus} x {gpu.name} has "
        f"{num_gpus * _usable_bytes(gpu) / 1e9:,.1f} GB usable. Use {' or '.join(ways) or 'a larger GPU'}. "
        f"{_remedy(purpose)}"
    )


def _others(gpu: Hardware, wanted: int) -> list[Tier]:
    counts = {name: _power_of_two(wanted / _usable_bytes(find_gpu(name))) for name in (DEFAULT_GPU, "H200")}
    return [Tier(name, count, wanted) for name, count in counts.items() if name != gpu.name and count <= MAX_GPUS]


def _usable_bytes(gpu: Hardware) -> float:
    return gpu.memory_bytes * USABLE_SHARE


def _power_of_two(gpus: float) -> int:
    count = 1
    while count < gpus:
        count *= 2
    return count


def _remedy(purpose: Purpose) -> str:
    return "A quantized variant needs less." if purpose == "serving" else "Method qlora needs less than lora or full."
