"""Scratch files of one source's rows: text columns as they were read, with each row's hash, place and turn in a draw.

A row's id and its turn follow from its own values alone, so neither moves when other rows come and go.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.reading.batches import ID_CHARACTERS, Batch
from llm_assets.data.sources import SourceConfig, SourceUnreadable

OWN_COLUMNS = ("row_id", "source", "content_hash", "source_file", "source_line")
OWN_SCHEMA = pa.schema([(n, pa.int64() if n == "source_line" else pa.string()) for n in OWN_COLUMNS])
PRIORITY = "draw priority"
SPOOLED = pa.schema([*OWN_SCHEMA, (PRIORITY, pa.uint64())])
LARGEST_COLUMN_COUNT = 1000
REPETITIVE: dict[str, Any] = {  # other columns hardly repeat; looking costs more than it saves
    "use_dictionary": ["source", "source_file"],
    "write_statistics": ["source", "source_line"],
}


class Segments:
    """Scratch files of one source: a new one begins whenever a column turns up that the current one lacks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._columns: dict[str, None] = {}

    def write(self, batch: Batch, file_name: str, source: SourceConfig) -> None:
        """Append the rows of one file."""
        if not batch.lines:
            return
        if self._writer is None or not batch.columns.keys() <= self._columns.keys():
            self._begin(batch, source)
        rows = len(batch.lines)
        nothing = pa.nulls(rows, pa.string())
        hashes = content_hashes(batch)
        own = {
            "row_id": pa.array([h[:ID_CHARACTERS] for h in hashes], pa.string()),
            "source": pa.repeat(source.label, rows),
            "content_hash": pa.array(hashes, pa.string()),
            "source_file": pa.repeat(file_name, rows),
            "source_line": pa.array(batch.lines, pa.int64()),
            PRIORITY: pa.array(draw_priorities(hashes, source.seed)),
        }
        columns = [*(batch.columns.get(name, nothing) for name in self._columns), *own.values()]
        assert self._writer is not None
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._writer.schema))

    def close(self) -> list[Path]:
        """Finish the last file; all of them, in order."""
        if self._writer:
            self._writer.close()
        return self._paths

    def _begin(self, batch: Batch, source: SourceConfig) -> None:
        self.close()
        self._columns |= dict.fromkeys(batch.columns)
        if len(self._columns) > LARGEST_COLUMN_COUNT:
            raise SourceUnreadable(
                f"Source '{source.label}': its rows have more than {LARGEST_COLUMN_COUNT} different keys, such as "
                f"{', '.join(list(batch.columns)[:5])}. Write one row per object, with the same keys in each."
            )
        self._paths.append(self._directory / f"{len(self._paths):05}.parquet")
        schema = pa.schema([*((name, pa.string()) for name in self._columns), *SPOOLED])
        self._writer = pq.ParquetWriter(self._paths[-1], schema, compression="lz4", **REPETITIVE)


def content_hashes(batch: Batch) -> list[str]:
    """SHA-256 of each row's values by column name; a null counts the same as a column that is absent."""
    names = sorted(batch.columns)
    if not names:  # rows of empty objects
        return [sha256().hexdigest()] * len(batch.lines)
    marks = [f"{len(name)}:{name}=" for name in names]
    rows = zip(*(batch.columns[name].to_pylist() for name in names), strict=True)
    return [
        sha256(
            "".join([f"{m}{len(v)}:{v}" for m, v in zip(marks, row, strict=True) if v is not None]).encode()
        ).hexdigest()
        for row in rows
    ]


def draw_priorities(hashes: Sequence[str], seed: int) -> np.ndarray:
    """Place of each row in the draw, uint64: the rows with the smallest are taken first.

    It is decided by a row's content and the seed alone, so a new row displaces at most one that was drawn before.
    The mixing function is splitmix64's (Steele, Lea and Flood, 2014).
    """
    mixed = np.array([int(h[:16], 16) for h in hashes], np.uint64) ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
