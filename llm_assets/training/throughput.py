"""How fast a run trains: tokens that belong to a row per second, and the share of the device's peak they use.

Operations are counted from the documents of each step, so that attention costs what it costs and padding or recomputed
activations earn nothing.
"""

import resource
import sys
import time
from collections.abc import Sequence

from llm_assets.training.device import TrainingDevice
from llm_assets.training.model_shape import ModelShape


def step_flops(shape: ModelShape, *, full: bool, lengths: Sequence[int], supervised: int) -> float:
    """Operations of one optimiser step.

    A product with a weight takes 2 per weight and token forwards, 2 backwards for the token, and 2 for the weight where
    it is trained; adapters are left out, being under 1 %. The output head counts for supervised tokens only. Attention
    takes 2 · length² · query width per layer forwards (scores and mix, causal half) and twice that backwards:
    Chowdhery et al., PaLM (arXiv 2204.02311), appendix B.

    Args:
        shape: The base model.
        full: Whether weights are trained, rather than an adapter.
        lengths: Tokens of each document of the step.
        supervised: Labels with a loss.
    """
    per_weight = 6 if full else 4
    weights = shape.linear_values * sum(lengths) + shape.embedding_values * supervised
    attention = 6 * shape.layers * shape.query_width * sum(length**2 for length in lengths)
    return float(per_weight * weights + attention)


class Throughput:
    """Tokens and operations of the steps this process took, and the seconds spent in them; evaluations do not count."""

    def __init__(self, shape: ModelShape, full: bool, device: TrainingDevice, processes: int = 1) -> None:
        self._shape, self._full, self._processes = shape, full, processes
        self._peak = device.peak_flops
        self._tokens = self._flops = self._seconds = 0.0
        self._began = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._began = time.monotonic()

    def end(self, lengths: Sequence[int], supervised: int) -> dict[str, float]:
        """A step ends; its own speed by name.

        Args:
            lengths: Tokens of each of this process's documents.
            supervised: Labels with a loss among them.
        """
        seconds = max(time.monotonic() - self._began, 1e-9)
        flops = step_flops(self._shape, full=self._full, lengths=lengths, supervised=supervised)
        self._tokens, self._flops, self._seconds = (
            self._tokens + sum(lengths),
            self._flops + flops,
            self._seconds + seconds,
        )
        share = {"model_flops_share": flops / seconds / self._peak} if self._peak else {}
        return {"tokens_per_second": self._processes * sum(lengths) / seconds, **share}

    @property
    def tokens_per_second(self) -> float:
        """Over all steps so far and all processes; 0 before the first."""
        return self._processes * self._tokens / self._seconds if self._seconds else 0.0

    @property
    def model_flops_share(self) -> float | None:
        """Operations per second over the device's peak; None where that is unknown or no step was taken."""
        return self._flops / self._seconds / self._peak if self._peak and self._seconds else None


def peak_memory_bytes(kind: str) -> int:
    """The most memory in use so far: tensors of this process on a GPU, or the whole process's own on a CPU."""
    if kind == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
