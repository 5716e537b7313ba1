"""The rows that were left out, each with its reason, kept beside the rows that were not."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.segments import OWN_COLUMNS

EXCERPT_CHARS = 160
SAMPLES_PER_REASON = 3


class DroppedRow(NamedTuple):
    """One row that was left out.

    Attributes:
        row_id: Its id in the raw dataset.
        source: Its source.
        place: File and line it was read from, as far as known.
        reason: What it is counted under.
        detail: One sentence for a person.
        excerpt: The start of what it says.
    """

    row_id: str
    source: str
    place: str | None
    reason: str
    detail: str
    excerpt: str


DROPPED = pa.schema([(name, pa.string()) for name in DroppedRow._fields])


class DroppedRows:
    """Writes `dropped.parquet` as rows leave, and counts them by reason."""

    def __init__(self, path: Path):
        self.counts: Counter[str] = Counter()
        self.first: DroppedRow | None = None
        self._writer = pq.ParquetWriter(path, DROPPED, compression="zstd")
        self._waiting: list[dict[str, str | None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()
        self._writer.close()

    def add(self, row: DroppedRow) -> None:
        """Note one row."""
        self.counts[row.reason] += 1
        self.first = self.first or row
        stored = row._replace(detail=_storable(row.detail), excerpt=_storable(row.excerpt))
        self._waiting.append(stored._asdict())
        if len(self._waiting) >= 10_000:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            self._writer.write_table(pa.Table.from_pylist(self._waiting, DROPPED))
            self._waiting = []


def place_of(row: Mapping[str, Any]) -> str | None:
    """File and line of a raw row, as far as it says."""
    file, line = row.get("source_file"), row.get("source_line")
    return f"{file}:{line}" if file and line is not None else file or (None if line is None else f"row {line}")


def excerpt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """The start of the last question and of the answer, for people."""
    spoken = [turn for turn in messages if turn["role"] != "system"][-2:]
    share = EXCERPT_CHARS // max(1, len(spoken))
    starts = [(turn["content"] or turn.get("tool_calls") or "")[: share * 2] for turn in spoken]
    texts = [" ".join(start.split())[:share] for start in starts]
    return " | ".join(f"{turn['role']}: {text}" for turn, text in zip(spoken, texts, strict=True))


def excerpt_of_raw(row: Mapping[str, Any]) -> str:
    """The start of a source row that could not be read as a conversation."""
    cells = {name: str(value)[:EXCERPT_CHARS] for name, value in row.items() if value is not None}
    for own in OWN_COLUMNS:
        cells.pop(own, None)
    return json.dumps(cells, ensure_ascii=False)[:EXCERPT_CHARS]


def dropped_by_reason(dropped: Path, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """One line per reason of a `dropped.parquet`: how many rows it cost, and the first of them."""
    lines = []
    for reason, rows in counts.items():
        first = _of_reason(dropped, reason, 1)[0]
        lines.append({"reason": reason, "rows": rows, "first_row": first["row_id"], "detail": first["detail"]})
    return lines


def dropped_samples(dropped: Path, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The first rows of every reason."""
    return [row for reason in counts for row in _of_reason(dropped, reason, SAMPLES_PER_REASON)]


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text that a file can hold


def _of_reason(dropped: Path, reason: str, most: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for batch in pq.ParquetFile(dropped).iter_batches(10_000):
        if len(found) < most:
            places = np.flatnonzero(batch["reason"].to_numpy(zero_copy_only=False) == reason)[: most - len(found)]
            found += batch.take(pa.array(places)).to_pylist()
    return found
