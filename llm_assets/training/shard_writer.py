"""Write one safetensors file from front to back: rows of a tensor as they are computed, whole tensors as bytes.

The format states every size in its header, so the header is written before the first tensor exists, and what follows
never has to be held together. A tensor that does not change goes from file to file inside the kernel.
"""

import errno
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.block_memory import BlockMemory
from llm_assets.training.shards import BYTES, DTYPES, TensorEntry

if TYPE_CHECKING:
    import torch

CODES = {dtype: code for code, dtype in DTYPES.items()}
BLOCK_BYTES = 8 << 20
NOT_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY, errno.EBADF}


class DiskTooSmall(LLMAssetsError):
    """The merged model does not fit on the disk."""


class WeightsOverflow(LLMAssetsError):
    """A merged weight is NaN, or larger than the stored type can hold."""


@dataclass(frozen=True)
class Announced:
    """A tensor that a file will hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * BYTES.get(self.dtype, 1)


class ShardWriter:
    """Fills a file with the announced tensors, in their order; see `writing`."""

    def __init__(self, descriptor: int, announced: Sequence[Announced]) -> None:
        self.descriptor, self.left, self.written = descriptor, list(announced), 0
        self.memory = BlockMemory()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in announced:
            span = [offset, offset + tensor.bytes]
            header[tensor.name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
            offset += tensor.bytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._write(memoryview(len(encoded).to_bytes(8, "little") + encoded))

    def append(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Add the next rows of the next announced tensor, cast to its dtype.

        Returns:
            The rows as they were stored; valid until the next call.

        Raises:
            WeightsOverflow: a value is not finite in that dtype; names the tensor and the value.
        """
        import torch

        current = self.left[0]
        if getattr(torch, current.dtype).is_floating_point:
            _refuse_overflow(current, rows)
        stored = self.memory.take("stored", tuple(rows.shape), current.dtype).copy_(rows)
        self._write(stored.reshape(-1).view(torch.uint8).numpy().data)
        self._advance(stored.nbytes)
        return stored

    def copy(self, entry: TensorEntry) -> None:
        """Add the next announced tensor as the bytes it has in another file."""
        with entry.file.open("rb", buffering=0) as source:
            copy_bytes(source.fileno(), entry.offset, entry.bytes, self.descriptor)
        self._advance(entry.bytes)

    def _advance(self, count: int) -> None:
        self.written += count
        if self.written > self.left[0].bytes:
            raise ValueError(f"{self.left[0].name} was announced with {self.left[0].bytes} bytes, not {self.written}")
        if self.written == self.left[0].bytes:
            self.left.pop(0)
            self.written = 0

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self.descriptor, data) :]


def copy_bytes(source: int, offset: int, count: int, target: int) -> None:
    """Copy a range of one open file to the end of another, inside the kernel where it can."""
    while count and sys.platform == "linux":
        try:
            done = os.copy_file_range(source, target, count, offset_src=offset)
        except OSError as error:
            if error.errno not in NOT_IN_KERNEL:
                raise
            break
        if not done:
            break
        offset, count = offset + done, count - done
    while count:
        block = memoryview(os.pread(source, min(count, BLOCK_BYTES), offset))
        if not block:
            raise ValueError("The source file ended early.")
        offset, count = offset + len(block), count - len(block)
        while block:
            block = block[os.write(target, block) :]


def _refuse_overflow(tensor: Announced, rows: "torch.Tensor") -> None:
    import torch

    if not rows.numel():
        return
    limit = torch.finfo(getattr(torch, tensor.dtype)).max
    low, high = (float(value) for value in rows.aminmax())
    if not (-limit <= low and high <= limit):  # also where one is NaN
        largest = high if not abs(low) > abs(high) else low
        raise WeightsOverflow(
            f"{tensor.name} reaches {largest:g} after the merge, and {tensor.dtype} holds up to {limit:g}. Set "
            "merge.dtype to bfloat16; if the value is nan or inf, the adapter is broken: train it anew."
        )


@contextmanager
def writing(path: Path, announced: Sequence[Announced]) -> Iterator[ShardWriter]:
    """Open a shard for writing; every announced tensor must be written, in order.

    Raises:
        DiskTooSmall: the disk or quota filled up on the way.
    """
    try:
        with path.open("wb", buffering=0) as file:
            writer = ShardWriter(file.fileno(), announced)
            yield writer
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskTooSmall(
            f"The disk filled up while {path} was written: {error.strerror}. Free space or point LLM_ASSETS_HOME at a "
            "larger disk, then run again; nothing was published."
        ) from error
    if writer.left:
        raise ValueError(f"{path.name} lacks {writer.left[0].name} and {len(writer.left) - 1} more tensors")
