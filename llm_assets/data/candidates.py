"""Rows that read as conversations, on the way to being compared: their text in a scratch file, their keys in memory."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow.parquet as pq

from llm_assets.data.chat_rows import batches
from llm_assets.data.deduplication import RowIds, RowKeys
from llm_assets.data.dropped import DroppedRows
from llm_assets.data.near_duplicates import SketchStore
from llm_assets.data.row_reader import CANDIDATE, Reading, ReadRows, read_in_order

PROGRESS_LINES = 20


class Candidates:
    """Reads raw rows into a scratch file, and keeps what comparing them takes.

    Args:
        scratch: Directory for the files.
        reading: How a row is read, or refused.
        dropped: Where refused rows go.

    Attributes:
        path: Parquet of the rows that were read: the chat dataset's columns, `source` and `place`.
        row_ids: Ids of these rows.
        sketches: Sketches of these rows, where near-duplicates are looked for.
        scrubbed: Personal data replaced, by kind.
        ingested: Raw rows so far.
        rows: Rows of `path` so far.
    """

    def __init__(self, scratch: Path, reading: Reading, dropped: DroppedRows):
        self.path, self.row_ids, self.ingested, self.rows = scratch / "candidates.parquet", RowIds(), 0, 0
        self.scrubbed = Counter[str]()
        self._reading, self._dropped = reading, dropped
        self._read: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._open = ExitStack()
        near = reading.curation.near_duplicates
        self.sketches = self._open.enter_context(SketchStore(scratch, near.similarity)) if near else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def read(self, rows: Path, log: Callable[[str], None]) -> None:
        """Read all rows of a raw dataset."""
        total, next_report = pq.read_metadata(rows).num_rows, 0
        with pq.ParquetWriter(self.path, CANDIDATE, compression="lz4") as writer:
            for read in read_in_order(batches(rows), self._reading, self._reading.curation.processes):
                self._take(read, writer)
                if self.ingested >= next_report:
                    log(f"read {self.ingested} of {total} rows, {self.ingested - self.rows} dropped")
                    next_report += max(1, total // PROGRESS_LINES)

    def keys(self) -> RowKeys:
        """What rows say, for comparing them."""
        keys = np.concatenate([keys for keys, _, _ in self._read])
        content, prompt, group = (np.ascontiguousarray(keys[:, n]) for n in range(3))
        return RowKeys(content, prompt, group, np.concatenate([given for _, given, _ in self._read]))

    def characters(self) -> np.ndarray:
        """Length of each row in characters, int32."""
        return np.concatenate([characters for _, _, characters in self._read])

    def _take(self, read: ReadRows, writer: pq.ParquetWriter) -> None:
        for row in read.dropped:
            self._dropped.add(row)
        self.ingested += read.ingested
        self.scrubbed += read.scrubbed
        if read.rows.num_rows:
            writer.write_batch(read.rows)
            self.row_ids.append(read.rows.column("row_id"))
            self._read.append((read.keys, read.given, read.characters))
            if self.sketches and read.sketches:
                self.sketches.append(read.sketches)
        self.rows += read.rows.num_rows
