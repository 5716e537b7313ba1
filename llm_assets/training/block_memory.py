"""Memory that every block of a merge uses again.

A block's temporary tensors are a few MiB each, which the C allocator fetches from the kernel and gives back every time;
clearing those pages took as long as the arithmetic in them.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class BlockMemory:
    """One growing buffer per role; a tensor taken from it is valid until the same role is taken again."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, role: str, shape: tuple[int, ...], dtype: str) -> "torch.Tensor":
        """An uninitialised contiguous tensor.

        Args:
            role: What it is for, such as "product".
            shape: Its shape.
            dtype: As torch names it.
        """
        import torch

        kind = getattr(torch, dtype)
        needed = math.prod(shape) * kind.itemsize
        if role not in self._buffers or self._buffers[role].numel() < needed:
            self._buffers[role] = torch.empty(needed, dtype=torch.uint8)
        return self._buffers[role][:needed].view(kind).view(shape)
