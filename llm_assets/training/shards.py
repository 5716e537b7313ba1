"""Read safetensors by header and byte range, so that a model larger than memory can be checked and rewritten.

Nothing is memory-mapped: mapped pages count as the process's memory until the kernel needs them elsewhere, and a merge
that promises a bound has to keep it. Format: 8 bytes little-endian header length, JSON header, tensor bytes.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.block_memory import BlockMemory

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOAT_CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
INTEGER_CODES = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
DTYPES = FLOAT_CODES | INTEGER_CODES
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2}  # others: 1


class WeightsMissing(LLMAssetsError):
    """A model directory has no safetensors weights, or its index names a file that is not there."""


class WeightsUnreadable(LLMAssetsError):
    """A weight file is no safetensors file, is cut short, or holds a number format that cannot be merged."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as its file's header states it.

    Attributes:
        dtype: As torch names it, such as bfloat16.
        file: Where its bytes are.
        offset: Of its first byte in that file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def values(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in its file."""
        return self.values * BYTES.get(self.dtype, 1)

    @property
    def is_float(self) -> bool:
        """Whether it holds weights, rather than integers that must stay as they are."""
        return self.dtype in FLOAT_CODES.values()


def shard_names(model: Path) -> list[str]:
    """File names of a model's safetensors shards, in order.

    Raises:
        WeightsMissing: there is none, or one of the index is absent.
        WeightsUnreadable: the index points outside the model's directory.
    """
    if (model / INDEX).exists():
        names = sorted(set(json.loads((model / INDEX).read_text())["weight_map"].values()))
    else:
        names = [SINGLE]
    if outside := [name for name in names if Path(name).name != name]:
        raise WeightsUnreadable(f"{model / INDEX} names {outside[0]}, which is not a file beside it. Download it anew.")
    missing = [name for name in names if not (model / name).exists()]
    if missing:
        raise WeightsMissing(f"{model} lacks {', '.join(missing)}. Only safetensors weights are read; convert others.")
    return names


def entries(shard: Path) -> list[TensorEntry]:
    """Tensors of a shard in the order of their bytes.

    Raises:
        WeightsUnreadable: no safetensors file, cut short, or in an unknown number format; names the file.
    """
    header, start = _header(shard)
    header.pop("__metadata__", None)
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if shard.stat().st_size < end:
        raise WeightsUnreadable(
            f"{shard} has {shard.stat().st_size:,} of {end:,} bytes. Complete the download or copy."
        )
    unknown = sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys())
    if unknown:
        raise WeightsUnreadable(
            f"{shard} holds {', '.join(unknown)} tensors, a quantized format. Use the model's full-precision release."
        )
    return [
        TensorEntry(name, DTYPES[found["dtype"]], tuple(found["shape"]), shard, start + found["data_offsets"][0])
        for name, found in ordered
    ]


def _header(shard: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the tensor bytes begin."""
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            return json.loads(file.read(length) if length <= shard.stat().st_size else b""), 8 + length
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise WeightsUnreadable(
                f"{shard} is no safetensors file ({shard.stat().st_size:,} bytes). If it is a Git LFS pointer, run "
                "`git lfs pull`; else download it again."
            ) from error


def model_entries(model: Path) -> dict[str, list[TensorEntry]]:
    """Tensors of every shard of a model by file name; raises as `shard_names` and `entries`."""
    return {name: entries(model / name) for name in shard_names(model)}


def read_rows(
    entry: TensorEntry, first: int = 0, last: int | None = None, memory: BlockMemory | None = None
) -> "torch.Tensor":
    """Rows `first` to `last` of a tensor (all by default), in its own dtype, into fresh memory or a block's."""
    import torch

    rows = (entry.shape[0] if entry.shape else 1) if last is None else last
    shape = (rows - first, *entry.shape[1:]) if entry.shape else ()
    raw = (memory or BlockMemory()).take("read", shape, entry.dtype)
    target = raw.reshape(-1).view(torch.uint8).numpy().data
    position = entry.offset + first * (entry.bytes // max(1, entry.shape[0] if entry.shape else 1))
    with entry.file.open("rb", buffering=0) as file:
        while target:
            read = os.preadv(file.fileno(), [target], position)
            if not read:
                raise WeightsUnreadable(f"{entry.file} ends within {entry.name}. Materialize its asset again.")
            target, position = target[read:], position + read
    return raw


def write_index(model: Path, shards: dict[str, Sequence[str]], total_bytes: int) -> None:
    """Write the index of a model of several shards from tensor names by file; a model in one file has none."""
    if list(shards) == [SINGLE]:
        return
    weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    content = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (model / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True))
