"""The first pass of an ingestion: every source read once, as text, into scratch files that the second pass merges.

Only after the last row is it known what type a column has, which rows repeat others and how many rows a mixture takes.
Reading twice would ask a server or a bucket twice and could see two states; a scratch copy costs disk instead.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.nested import opened
from llm_assets.data.reading.batches import NESTED, Batch, Damage, RefusedRow, short_id
from llm_assets.data.reading.columnar import database_batches, parquet_batches
from llm_assets.data.reading.csv_rows import csv_batches
from llm_assets.data.reading.json_rows import json_batches
from llm_assets.data.reading.threads import thread_batches
from llm_assets.data.segments import OWN_COLUMNS, PRIORITY, Segments
from llm_assets.data.source_files import SourceFile
from llm_assets.data.sources import SourceConfig, SourceUnreadable

REFUSED = pa.schema([(n, pa.int64() if n == "line" else pa.string()) for n in RefusedRow._fields])
EARLY_STOP_ROWS = 1000  # refused rows after which a source over its share is given up
PLACES = 3
TAKEN = (*OWN_COLUMNS, PRIORITY)


class RowMissingColumn(LLMAssetsError):
    """A file lacks a column the dataset's format reads."""


class TooManyRowsRefused(LLMAssetsError):
    """More rows of a source are damaged than `max_refused_share` allows."""


@dataclass
class SpooledSource:
    """What the first pass found of one source.

    Attributes:
        files: Number of files; 0 for a database.
        read: Rows read, the refused ones among them.
        refused: Rows refused, by reason.
        places: Where the first refused rows stand, and why.
        segments: Scratch files of the rows that can be drawn, in order; source columns are text.
        kinds: Kinds of the values of each column.
        first_row: The first of those rows, for a look at its format.
    """

    files: int = 0
    read: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    places: list[str] = field(default_factory=list)
    segments: list[Path] = field(default_factory=list)
    kinds: dict[str, set[str]] = field(default_factory=dict)
    first_row: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows that can be drawn."""
        return self.read - self.refused.total()


def spool(
    source: SourceConfig,
    files: Sequence[SourceFile],
    required: Sequence[str],
    scratch: Path,
    refused: pq.ParquetWriter,
    log: Callable[[str], None] = print,
) -> SpooledSource:
    """Read one source into scratch files; refused rows go to `refused`.

    Args:
        source: Where the rows are; a three-part table is resolved already.
        files: Its files; none for a database.
        required: Columns every file must have.
        scratch: Empty directory for the segments of this source.
        refused: Writer of rows with the schema `REFUSED`.
        log: Told about the files, and every so often within one.

    Raises:
        SourceMissing: the source names no table.
        SourceUnreadable: a file is damaged as a whole.
        RowMissingColumn: no row of a file has a required column.
        TooManyRowsRefused: as its name says; lists the first places.
    """
    found, writer, next_report = SpooledSource(files=len(files)), Segments(scratch), 100_000
    for number, file in enumerate(files or [None]):
        seen: dict[str, None] = {}  # columns of this file
        before = found.kept
        for batch in (_sized(_named(b, source), source) for b in _rows(file, source, scratch)):
            seen |= dict.fromkeys(batch.columns)
            if file is None or file.format != "json":  # JSON rows may bring a key later
                _refuse_missing(file, source, required, list(seen))
            taken = _first(batch, source.first_rows - found.kept) if source.first_rows else batch
            _count(found, taken, file, source, refused)
            writer.write(taken, _file_name(file), source)
            if found.read >= next_report:
                log(f"{source.label}: {found.read} rows read, {found.refused.total()} refused")
                next_report = next_report * 3 // 2
            if source.first_rows == found.kept:
                break
        if found.kept > before:
            _refuse_missing(file, source, required, list(seen))
        if number % (len(files) // 20 + 1) == 0:
            log(f"{_file_name(file) or source.label}: {found.read} rows of {source.label} read so far")
        if source.first_rows == found.kept:
            break
    found.segments = writer.close()
    refuse_damage(source, found)
    return found


def refuse_damage(source: SourceConfig, found: SpooledSource) -> None:
    """Raise `TooManyRowsRefused` when a larger share of rows is refused than the source allows."""
    damaged = found.refused.total()
    if damaged > source.max_refused_share * found.read:
        reasons = ", ".join(f"{reason}: {rows}" for reason, rows in found.refused.most_common())
        raise TooManyRowsRefused(
            f"Source '{source.label}': {damaged} of {found.read} rows are refused ({reasons}), more than "
            f"max_refused_share {source.max_refused_share:g}. First: {'; '.join(found.places)}. Repair them, or raise "
            "max_refused_share to go on without them."
        )


def _rows(file: SourceFile | None, source: SourceConfig, scratch: Path) -> Iterator[Batch]:
    found = _batches(file, source, scratch)
    return thread_batches(found, source, scratch) if source.threads else found


def _batches(file: SourceFile | None, source: SourceConfig, scratch: Path) -> Iterator[Batch]:
    if file is None:
        return database_batches(source, scratch)
    if file.format == "parquet":
        return parquet_batches(file)
    return json_batches(file, source) if file.format == "json" else csv_batches(file, source)


def _named(batch: Batch, source: SourceConfig) -> Batch:
    """The batch under the names its columns have in the dataset."""
    names = {name: source.rename.get(name, name) for name in batch.columns}
    names = {name: f"original_{new}" if new.casefold() in TAKEN else new for name, new in names.items()}
    if len(set(names.values())) < len(names):
        raise SourceUnreadable(
            f"Source '{source.label}': two of its columns {', '.join(names)} would have one name after `rename` "
            f"{source.rename}. Choose another new name."
        )
    columns = {names[name]: values for name, values in batch.columns.items()}
    return Batch(batch.lines, columns, {names[n]: kinds for n, kinds in batch.kinds.items()}, batch.refused)


def _sized(batch: Batch, source: SourceConfig) -> Batch:
    """The batch without rows that are too large; files of lines were measured before they were parsed."""
    sizes = np.zeros(len(batch.lines), np.int64)
    for values in batch.columns.values():
        sizes += pc.fill_null(pc.call_function("binary_length", [values]), 0).to_numpy(zero_copy_only=False)
    large = sizes > 2 * source.max_row_bytes  # twice: JSON text of a nested value may be longer than what was read
    if not large.any():
        return batch
    refused = [
        (batch.lines[at], Damage("row_too_large", f"{sizes[at]:,} bytes, at most {source.max_row_bytes:,}", b"%d" % at))
        for at in np.flatnonzero(large).tolist()
    ]
    return _taken(batch, np.flatnonzero(~large).tolist(), [*batch.refused, *refused])


def _first(batch: Batch, rows: int) -> Batch:
    if rows >= len(batch.lines):
        return batch
    return _taken(batch, range(rows), [(line, why) for line, why in batch.refused if line < batch.lines[rows]])


def _taken(batch: Batch, places: Sequence[int], refused: Sequence[tuple[int, Damage]]) -> Batch:
    columns = {name: values.take(pa.array(places, pa.int64())) for name, values in batch.columns.items()}
    return Batch([batch.lines[at] for at in places], columns, batch.kinds, refused)


def _count(
    found: SpooledSource, batch: Batch, file: SourceFile | None, source: SourceConfig, refused: pq.ParquetWriter
) -> None:
    places = [
        RefusedRow(short_id(d.content), source.label, _file_name(file), line, d.reason, d.detail[:500])
        for line, d in batch.refused
    ]
    if places:
        refused.write_table(pa.Table.from_pylist([place._asdict() for place in places], REFUSED))
    found.read += len(batch.lines) + len(places)
    found.refused.update(place.reason for place in places)
    where = (f"{p.file}, line {p.line} (row {p.row_id}): {p.reason}: {p.detail[:160]}" for p in places)
    found.places += list(where)[: PLACES - len(found.places)]
    for name, kinds in batch.kinds.items():
        found.kinds.setdefault(name, set()).update(kinds)
    if batch.lines and not found.first_row:
        nested = [name for name, kinds in batch.kinds.items() if NESTED in kinds]
        found.first_row = dict(opened({name: values[0].as_py() for name, values in batch.columns.items()}, nested))
    if found.refused.total() >= EARLY_STOP_ROWS:
        refuse_damage(source, found)


def _refuse_missing(file: SourceFile | None, source: SourceConfig, required: Sequence[str], found: list[str]) -> None:
    for column in required:
        if column not in found:
            raise RowMissingColumn(
                f"{file.path if file else source.label}: no column '{column}'. It has: {', '.join(found)}. Set the "
                "format's type or column names to match, use the source's `rename`, or add the column."
            )


def _file_name(file: SourceFile | None) -> str:
    return file.name if file else ""
