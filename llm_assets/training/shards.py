"""Read and write safetensors one tensor at a time, so that a model larger than memory can be rewritten.

A safetensors file states every size in its header, so the header is written before the first tensor is computed.
Format: 8 bytes little-endian header length, JSON header, tensor bytes in header order.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class WeightsMissing(LLMAssetsError):
    """A model directory has no safetensors weights, or its index names a file that is not there."""


@dataclass(frozen=True)
class TensorEntry:
    """Name and shape of one tensor, as a file's header states them."""

    name: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def shard_names(model: Path) -> list[str]:
    """File names of a model's safetensors shards, in order.

    Raises:
        WeightsMissing: there is none, or one of the index is absent.
    """
    if (model / INDEX).exists():
        names = sorted(set(json.loads((model / INDEX).read_text())["weight_map"].values()))
    else:
        names = [SINGLE]
    missing = [name for name in names if not (model / name).exists()]
    if missing:
        raise WeightsMissing(f"{model} lacks {', '.join(missing)}. Only safetensors weights are read; convert others.")
    return names


def entries(shard: Path) -> list[TensorEntry]:
    """Tensors of a shard in the order of their bytes."""
    with shard.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])
    return [TensorEntry(name, tuple(entry["shape"])) for name, entry in ordered]


class ShardWriter:
    """Writes tensors in the order they were announced; see `writing`."""

    def __init__(self, file: IO[bytes], announced: Sequence[TensorEntry], dtype: str) -> None:
        self.file, self.left, self.dtype = file, list(announced), dtype
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in announced:
            end = offset + entry.values * BYTES[dtype]
            header[entry.name] = {
                "dtype": DTYPE_CODES[dtype],
                "shape": list(entry.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        file.write(len(encoded).to_bytes(8, "little") + encoded)

    def write(self, tensor: "torch.Tensor") -> None:
        """Append the next announced tensor, cast to the shard's dtype."""
        import torch

        expected = self.left.pop(0)
        if tuple(tensor.shape) != expected.shape:
            raise ValueError(f"{expected.name} was announced as {expected.shape}, not {tuple(tensor.shape)}")
        stored = tensor.detach().to("cpu", getattr(torch, self.dtype)).contiguous()
        self.file.write(stored.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def writing(path: Path, announced: Sequence[TensorEntry], dtype: str) -> Iterator[ShardWriter]:
    """Open a shard for writing; every announced tensor must be written, in order."""
    with path.open("wb") as file:
        writer = ShardWriter(file, announced, dtype)
        yield writer
        if writer.left:
            raise ValueError(f"{path.name} lacks {writer.left[0].name} and {len(writer.left) - 1} more tensors")


def write_index(model: Path, shards: Mapping[str, Sequence[TensorEntry]], dtype: str) -> None:
    """Write the index of a model of several shards; a model in one file has none."""
    if list(shards) == [SINGLE]:
        return
    weight_map = {entry.name: name for name, tensors in shards.items() for entry in tensors}
    total = sum(entry.values for tensors in shards.values() for entry in tensors)
    content = {"metadata": {"total_size": total * BYTES[dtype]}, "weight_map": weight_map}
    (model / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True))
