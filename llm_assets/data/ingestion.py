"""Sources become one Parquet file of rows with stable ids, in two streamed passes with flat memory.

Text, whole numbers, decimals and booleans keep their type; everything nested travels as JSON text, so that files
whose nested types differ still fit under one another. A row's id is the hash of its own values alone: it does not
move when other rows, files or columns come and go. `source_file` and `source_line` lead back to where it was written.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.catalogs import from_catalog
from llm_assets.data.formats import required_columns as columns_read_by
from llm_assets.data.mixing import draw, drawn_rows, refuse_impossible_mixture
from llm_assets.data.nested import NESTED_MARK
from llm_assets.data.reading.batches import BATCH_ROWS, DECIMAL, NESTED, TRUTH, WHOLE
from llm_assets.data.segments import OWN_SCHEMA, PRIORITY, REPETITIVE
from llm_assets.data.source_files import files_of, refuse_ambiguous
from llm_assets.data.sources import SourceConfig, SourceEmpty
from llm_assets.data.spilling import bounded_connection
from llm_assets.data.spool import REFUSED, RowMissingColumn, SpooledSource, TooManyRowsRefused, spool

__all__ = ["REFUSED_ROWS", "ROWS", "IngestReport", "RowMissingColumn", "SourceReport", "TooManyRowsRefused", "ingest"]

ROWS, REFUSED_ROWS = "rows.parquet", "refused.parquet"


@dataclass(frozen=True)
class SourceReport:
    """What became of one source's rows: `read` = `refused` + `held`, of which `drawn` are in the dataset.

    Attributes:
        files: Files read; 0 for a database.
        read: Rows read.
        refused: Rows refused, by reason.
        held: Rows that could be drawn.
        drawn: Rows in the dataset.
        first_row: The first row that could be drawn, as text.
    """

    files: int
    read: int
    refused: Mapping[str, int]
    held: int
    drawn: int
    first_row: Mapping[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True)
class IngestReport:
    """What one ingestion read and wrote.

    Attributes:
        rows: Rows written.
        sources: Report of each source by its label.
        repeats: Rows whose content occurred before; their ids end in `-2`, `-3`, …
        filled: Rows in which each source column has a value.
    """

    rows: int
    sources: Mapping[str, SourceReport]
    repeats: int
    filled: Mapping[str, int]

    @property
    def held(self) -> dict[str, int]:
        """Rows each source was to contribute."""
        return {label: source.drawn for label, source in self.sources.items()}

    @property
    def refused(self) -> int:
        """Rows refused of all sources."""
        return sum(sum(source.refused.values()) for source in self.sources.values())


def ingest(
    sources: Sequence[SourceConfig], required_columns: Sequence[str], out: Path, log: Callable[[str], None] = print
) -> IngestReport:
    """Write `rows.parquet` and `refused.parquet` in `out`.

    The rows have the union of all columns by name, plus `row_id`, `source`, `content_hash`, `source_file` and
    `source_line`; a source column with one of those names is kept as `original_<name>`.

    Raises:
        SourceMissing: a path, glob, URL or table names nothing.
        SourceEmpty: a source holds no row.
        SourceUnreadable: a file is damaged as a whole; names the place.
        RowMissingColumn: names file and column.
        TooManyRowsRefused: more damaged rows than a source allows; names the first places.
        MixtureUnmet: the sources do not hold the rows that the mixture asks for.
    """
    refuse_ambiguous(sources)
    refuse_impossible_mixture(sources)
    resolved = [from_catalog(source) for source in sources]
    files = [files_of(source) for source in resolved]  # all of them before the first row: what is missing shows now
    with TemporaryDirectory(dir=out.parent, prefix=".spool-") as scratch:
        spools = {}
        with pq.ParquetWriter(out / REFUSED_ROWS, REFUSED, compression="zstd") as refused:
            for number, source in enumerate(resolved):
                directory = Path(scratch) / str(number)
                directory.mkdir()
                required = columns_read_by(source.row_format) if source.row_format else required_columns
                spools[source.label] = spool(source, files[number], required, directory, refused, log)
                if spools[source.label].kept == 0:
                    raise SourceEmpty(
                        f"Source '{source.label}' holds no row"
                        + (f" but {spools[source.label].read} refused ones" if spools[source.label].read else "")
                        + ". Write rows there, or remove the source."
                    )
        drawn = drawn_rows(sources, {label: found.kept for label, found in spools.items()})
        written = _Merged(spools, Path(scratch))
        for source in sources:
            written.write(spools[source.label], drawn[source.label], out / ROWS)
            log(f"{source.label}: wrote {drawn[source.label]} of {spools[source.label].kept} rows")
        written.close()
    reports = {
        label: SourceReport(found.files, found.read, dict(found.refused), found.kept, drawn[label], found.first_row)
        for label, found in spools.items()
    }
    return IngestReport(sum(drawn.values()), reports, written.repeats, dict(written.filled))


class _Merged:
    """The one file all sources are written to, with final types and ids."""

    def __init__(self, spools: Mapping[str, SpooledSource], scratch: Path) -> None:
        kinds: dict[str, set[str]] = {}
        for found in spools.values():
            for name, seen in found.kinds.items():
                kinds.setdefault(name, set()).update(seen)
        self._types = {name: _final_type(seen) for name, seen in kinds.items()}
        nested = {name for name, seen in kinds.items() if NESTED in seen}
        fields = [pa.field(n, t, metadata=NESTED_MARK if n in nested else None) for n, t in self._types.items()]
        self._schema = pa.schema([*fields, *OWN_SCHEMA])
        self._writer: pq.ParquetWriter | None = None
        self._repeated = _repeated_ids([path for found in spools.values() for path in found.segments], scratch)
        self._times: Counter[str] = Counter()
        self.filled: Counter[str] = Counter(dict.fromkeys(self._types, 0))
        self.repeats = 0

    def write(self, found: SpooledSource, rows: int, path: Path) -> None:
        """Append the drawn rows of one source, in its order."""
        self._writer = self._writer or pq.ParquetWriter(path, self._schema, compression="zstd", **REPETITIVE)
        for batch in _drawn_batches(found, rows):
            self._writer.write_batch(self._final(batch))

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def _final(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        names = set(batch.schema.names)
        columns: list[pa.Array] = []
        for name, type in self._types.items():
            values = batch.column(name).cast(type) if name in names else pa.nulls(batch.num_rows, type)
            self.filled[name] += len(values) - values.null_count
            columns.append(values)
        own = [batch.column(name) for name in OWN_SCHEMA.names]
        own[0] = self._numbered(own[0])
        return pa.RecordBatch.from_arrays([*columns, *own], schema=self._schema)

    def _numbered(self, ids: pa.Array) -> pa.Array:
        """The second and later rows of one content get the ids `<id>-2`, `<id>-3`, …."""
        if not self._repeated:
            return ids
        numbered = ids.to_pylist()
        for at, row_id in enumerate(numbered):
            if row_id in self._repeated:
                self._times[row_id] += 1
                if self._times[row_id] > 1:
                    self.repeats += 1
                    numbered[at] = f"{row_id}-{self._times[row_id]}"
        return pa.array(numbered, pa.string())


def _drawn_batches(found: SpooledSource, rows: int) -> Iterator[pa.RecordBatch]:
    if rows == found.kept:
        yield from _segment_batches(found)
        return
    chosen = draw(found.segments, rows)
    places = chosen.places(np.asarray(batch.column(PRIORITY)) for batch in _segment_batches(found, [PRIORITY]))
    for batch, taken in zip(_segment_batches(found), places, strict=True):
        if len(taken):
            yield batch.take(pa.array(taken))


def _segment_batches(found: SpooledSource, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    for path in found.segments:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield from file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False)


def _repeated_ids(segments: Sequence[Path], scratch: Path) -> set[str]:
    """Ids that more than one row has; grouping spills to disk."""
    query = "SELECT row_id FROM read_parquet($files) GROUP BY row_id HAVING count(*) > 1"
    with bounded_connection(beside=scratch / "repeats", memory_limit="256MB") as connection:
        return {row_id for (row_id,) in connection.execute(query, {"files": [str(p) for p in segments]}).fetchall()}


def _final_type(kinds: set[str]) -> pa.DataType:
    """Type of a column by the kinds of its values: decimals where numbers mix, text where anything else does."""
    if kinds and kinds <= {WHOLE, DECIMAL}:
        return pa.float64() if DECIMAL in kinds else pa.int64()
    return pa.bool_() if kinds == {TRUTH} else pa.string()
