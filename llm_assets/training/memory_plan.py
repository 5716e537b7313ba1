"""How much memory a training run needs, computed before anything is loaded, and the batch that fits into it.

The plan counts tensors, so it knows nothing of an allocator's fragmentation: a tenth of the device is left free for it.
What a plan gets wrong costs no run, because a step that does not fit is repeated under the next smaller plan.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llm_assets.core import LLMAssetsError
from llm_assets.training.memory_need import part_bytes
from llm_assets.training.model_shape import ModelShape
from llm_assets.training.training_config import TrainingConfig

GIB = 1024**3
USABLE_SHARE = 0.9
FRAMEWORK_BYTES = {"cuda": GIB, "cpu": 3 * GIB // 2}  # context, kernels and workspaces; a process with its libraries


class MemoryTooSmall(LLMAssetsError):
    """Not even one pack at a time fits into the device."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one training run on one device, and the batch they are for.

    Attributes:
        weights: The base model's weights as they are held in training.
        quantization_constants: Block constants of 4-bit weights.
        adapter: Trained values apart from the base: adapter matrices, saved modules, token rows.
        gradients: One float32 per trained value.
        optimizer: Moments of the optimiser.
        activations: What the backward pass reads again, and the working set of one layer.
        logits: Output of the head and its gradients for one chunk of labels.
        framework_overhead: The runtime's own memory, which no tensor count sees.
        micro_batch_packs: Packs in one forward pass.
        accumulation_steps: Forward passes of one optimiser step.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        device_memory_bytes: Memory of the device the plan is for.
    """

    weights: int
    quantization_constants: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    framework_overhead: int
    micro_batch_packs: int
    accumulation_steps: int
    gradient_checkpointing: bool
    device_memory_bytes: int

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensors at the peak: what an allocator reports."""
        return self.total_bytes - self.framework_overhead

    @property
    def total_bytes(self) -> int:
        """Bytes in use on the device at the peak."""
        return sum(getattr(self, name) for name in PARTS)

    @property
    def fits(self) -> bool:
        """Whether the plan leaves a tenth of the device free."""
        return self.total_bytes <= USABLE_SHARE * self.device_memory_bytes

    def table(self) -> str:
        """The plan as text, one part per line, with its share of the device."""
        lines = [f"{'part':<24}{'GiB':>10}{'of device':>11}"]
        for name in (*PARTS, "total"):
            size = self.total_bytes if name == "total" else getattr(self, name)
            share = size / self.device_memory_bytes
            lines.append(f"{name.replace('_', ' '):<24}{size / GIB:>10.3f}{share:>11.1%}")
        recomputed = "on" if self.gradient_checkpointing else "off"
        lines.append(
            f"{self.micro_batch_packs} packs per forward pass x {self.accumulation_steps} passes per step, "
            f"gradient checkpointing {recomputed}, device {self.device_memory_bytes / GIB:.1f} GiB"
        )
        return "\n".join(lines)


PARTS = (
    "weights", "quantization_constants", "adapter", "gradients", "optimizer", "activations", "logits",
    "framework_overhead",
)  # fmt: skip


def plan_memory(
    shape: ModelShape,
    config: TrainingConfig,
    *,
    pack_length_tokens: int,
    device_memory_bytes: int,
    device: str = "cuda",
    processes: int = 1,
) -> MemoryPlan:
    """The fastest plan that fits: activations kept before recomputed, then the largest forward pass.

    The packs of an optimiser step never change, only how many forward passes they are spread over. The formulas of each
    part and their sources are those of `memory_need.part_bytes`.

    Args:
        shape: The base model.
        config: Method, ranks, batch; `batch_packs` is an upper bound.
        pack_length_tokens: Capacity of a pack; every pack is taken to be full.
        device_memory_bytes: Memory of one device, all of it.
        device: `cuda` or `cpu`.
        processes: Devices an optimiser step's packs are shared between.

    Raises:
        MemoryTooSmall: nothing fits; says what the smallest plan needs and how to make it smaller.
    """
    plans = [
        plan_of(shape, config, pack_length_tokens, micro, recompute, device_memory_bytes, device, processes)
        for micro, recompute in batches(config, processes)
    ]
    for plan in plans:
        if plan.fits:
            return plan
    raise MemoryTooSmall(_refusal(min(plans, key=lambda plan: plan.total_bytes), config, pack_length_tokens))


def smaller_plans(
    plan: MemoryPlan,
    shape: ModelShape,
    config: TrainingConfig,
    *,
    pack_length_tokens: int,
    device: str = "cuda",
    processes: int = 1,
) -> list[MemoryPlan]:
    """Layouts of the same step to fall back to when `plan` did not fit: fastest first, each smaller than the last."""
    ladder = [plan]
    for micro, recompute in batches(config, processes):
        other = plan_of(
            shape, config, pack_length_tokens, micro, recompute, plan.device_memory_bytes, device, processes
        )
        if other.total_bytes < ladder[-1].total_bytes:
            ladder.append(other)
    return ladder[1:]


def batches(config: TrainingConfig, processes: int = 1) -> Iterator[tuple[int, bool]]:
    """Packs per forward pass and whether to recompute, fastest first; the packs of a step are always the same."""
    packs = config.packs_per_step // processes
    largest = packs if config.batch_packs == "auto" else config.batch_packs
    recompute = (False, True) if config.gradient_checkpointing == "auto" else (config.gradient_checkpointing,)
    for again in recompute:
        for micro in range(min(largest, packs), 0, -1):
            if packs % micro == 0:
                yield micro, again


def plan_of(
    shape: ModelShape,
    config: TrainingConfig,
    pack_length_tokens: int,
    micro_batch_packs: int,
    gradient_checkpointing: bool,
    device_memory_bytes: int,
    device: str = "cuda",
    processes: int = 1,
) -> MemoryPlan:
    """The bytes of one batch layout, whether it fits or not."""
    tokens = micro_batch_packs * pack_length_tokens
    return MemoryPlan(
        **part_bytes(shape, config, tokens, gradient_checkpointing, processes if config.sharding == "full" else 1),
        framework_overhead=FRAMEWORK_BYTES[device],
        micro_batch_packs=micro_batch_packs,
        accumulation_steps=config.packs_per_step // processes // micro_batch_packs,
        gradient_checkpointing=gradient_checkpointing,
        device_memory_bytes=device_memory_bytes,
    )


def _refusal(smallest: MemoryPlan, config: TrainingConfig, pack_length_tokens: int) -> str:
    largest = max(PARTS, key=lambda name: getattr(smallest, name))
    ways = [
        "set training.method qlora" if config.method != "qlora" else "take a smaller base model",
        "set training.processes and sharding full" if config.sharding == "none" and config.method != "qlora" else "",
        "set training.gradient_checkpointing auto" if config.gradient_checkpointing is False else "",
        f"lower tokenization.max_length_tokens (packs hold {pack_length_tokens:,} tokens)",
        "set training.use_dora false" if config.use_dora else "",
        "train rows with trainable_tokens instead of modules_to_save" if config.modules_to_save else "",
        "set training.optimizer paged_adamw_8bit" if config.method == "full" and config.optimizer == "adamw" else "",
        "use a device with more memory",
    ]
    return (
        f"Training with method {config.method} needs {smallest.total_bytes / GIB:.1f} GiB with one pack at a time, "
        f"most of it {largest.replace('_', ' ')} ({getattr(smallest, largest) / GIB:.1f} GiB); the device has "
        f"{smallest.device_memory_bytes / GIB:.1f} GiB, of which {USABLE_SHARE:.0%} may be used. Ways out: "
        + "; ".join(way for way in ways if way)
        + "."
    )
