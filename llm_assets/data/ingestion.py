"""Source files become one Parquet file of rows with stable ids, streamed through DuckDB with flat memory.

Text, whole numbers, decimals and booleans keep their type; everything nested travels as JSON text, so that files
whose nested types differ still fit under one another. A row's id is the hash of its own values alone: it does not
move when other rows, files or columns come and go. The cost is reading JSON twice, once for its columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.formats import required_columns as columns_read_by
from llm_assets.data.sources import SourceConfig, SourceEmpty, SourceFile, SourceUnreadable, find_files
from llm_assets.data.spilling import bounded_connection

ROWS = "rows.parquet"
BATCH_ROWS = 2048
ID_CHARACTERS = 16  # 64 bits of SHA-256: one accidental collision expected beyond four billion rows
OWN_COLUMNS = ("row_id", "source", "content_hash")
WHOLE_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
NESTED = ("STRUCT", "MAP", "UNION", "VARIANT")
ARROW = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "BOOLEAN": pa.bool_()}


class RowMissingColumn(LLMAssetsError):
    """A file, or one row of it, lacks a column the dataset's format reads."""


@dataclass(frozen=True)
class IngestReport:
    """What one ingestion read.

    Attributes:
        rows: Rows written.
        held: Rows each source's files hold, up to its `first_rows`, counted apart from the ingestion.
        repeats: Rows whose content occurred before; their ids end in `-2`, `-3`, …
        columns: Type of each source column as written.
    """

    rows: int
    held: Mapping[str, int]
    repeats: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class _Table:
    """One source file as DuckDB sees it: the relation to select from, and each column's type in it."""

    file: SourceFile
    relation: str
    types: Mapping[str, str]
    rows: int


def ingest(
    sources: Sequence[SourceConfig], required_columns: Sequence[str], out: Path, log: Callable[[str], None] = print
) -> IngestReport:
    """Write `rows.parquet` in `out`: the union of all columns by name, plus `row_id`, `source` and `content_hash`.

    A source column with one of those three names is kept as `original_<name>`.

    Raises:
        SourceMissing: a path or glob names no file.
        SourceEmpty: a source's files hold no row.
        SourceUnreadable: a file is malformed; names the place.
        RowMissingColumn: names file, row and column. Nothing is written then.
    """
    files = find_files(sources)
    with bounded_connection(beside=out / ROWS) as connection:
        tables = [_inspect(connection, file, required_columns) for file in files]
        held = {source.label: sum(t.rows for t in tables if t.file.source == source.label) for source in sources}
        wanted = {s.label: min(held[s.label], s.first_rows or held[s.label]) for s in sources}
        for label, rows in held.items():
            if rows == 0:
                raise SourceEmpty(f"Source '{label}' holds no row. Write rows there, or remove the source.")
        columns = _unified([table.types for table in tables])
        rows = _write(connection, tables, columns, wanted, out / ROWS, log)
    repeats = _number_repeats(out / ROWS)
    return IngestReport(rows=rows, held=wanted, repeats=repeats, columns=columns)


def _inspect(connection: duckdb.DuckDBPyConnection, file: SourceFile, required: Sequence[str]) -> _Table:
    path = _text(str(file.path))
    required = columns_read_by(file.row_format) if file.row_format else required
    try:
        if file.format == "json":
            table = _inspect_json(connection, file, required)
        else:
            relation = f"read_parquet({path})" if file.format == "parquet" else f"read_csv({path}, {CSV})"
            rows = _all(connection, f"SELECT count(*) FROM {relation}")[0][0]
            described = _all(connection, f"DESCRIBE SELECT * FROM {relation}")
            table = _Table(file, relation, {name: kind for name, kind, *_ in described}, rows)
    except duckdb.Error as error:
        reason = str(error).split("\n\n")[0]
        raise SourceUnreadable(f"{file.path} cannot be read as {file.format}: {reason}. Repair the file.") from error
    for column in required:
        if table.rows and column not in table.types:
            raise _missing(file, 1, column, list(table.types))
    return table


def _inspect_json(connection: duckdb.DuckDBPyConnection, file: SourceFile, required: Sequence[str]) -> _Table:
    """Keys and types of all rows; raises at the first row without a required key.

    DuckDB's own detection would look at the first rows only, and take text for dates.
    """
    path = _text(str(file.path))
    objects = f"read_json_objects({path}, format='auto')"
    rows = _all(connection, f"SELECT count(*) FROM {objects}")[0][0]
    of_key = """json_type(json, '$."' || replace(k, '"', '\\"') || '"')"""
    pairs = (
        f"SELECT json_keys(json) AS keys, list_transform(json_keys(json), lambda k: {of_key}) AS types FROM {objects}"
    )
    unnested = f"SELECT unnest(keys) AS key, unnest(types) AS type FROM ({pairs})"
    found: dict[str, set[str]] = {}
    held: dict[str, int] = {}
    for key, kind, count in sorted(_all(connection, f"SELECT key, type, count(*) FROM ({unnested}) GROUP BY ALL")):
        found.setdefault(key, set()).add(kind)
        held[key] = held.get(key, 0) + count
    for column in required:
        if held.get(column, 0) < rows:
            has = f"json_exists(json, {_text(_json_path(column))})"
            numbered = f"SELECT row_number() OVER () AS n, {has} AS has FROM {objects}"
            first = _all(connection, f"SELECT min(n) FROM ({numbered}) WHERE NOT has")[0][0]
            raise _missing(file, first, column, list(found))
    read_as = ", ".join(f"{_text(name)}: '{_json_type(kinds)}'" for name, kinds in found.items())
    relation = f"read_json({path}, columns={{{read_as}}})"
    return _Table(file, relation, {name: _json_type(kinds) for name, kinds in found.items()}, rows)


CSV = "all_varchar=true, header=true"  # as text: 007 stays 007


def _missing(file: SourceFile, row: int, column: str, found: list[str]) -> RowMissingColumn:
    return RowMissingColumn(
        f"{file.path}, row {row}: no column '{column}'. The file has: {', '.join(found)}. "
        "Set the format's type or column names to match the file, or add the column."
    )


def _unified(tables: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Type of each column over all files: the common one, DOUBLE for mixed numbers, else text."""
    unified: dict[str, str] = {}
    for types in tables:
        for name, kind in types.items():
            kept = _kept_type(kind)
            before = unified.setdefault(_own_name(name), kept)
            if before != kept:
                unified[_own_name(name)] = "DOUBLE" if {before, kept} == {"BIGINT", "DOUBLE"} else "VARCHAR"
    return unified


def _write(
    connection: duckdb.DuckDBPyConnection,
    tables: Sequence[_Table],
    columns: Mapping[str, str],
    wanted: Mapping[str, int],
    path: Path,
    log: Callable[[str], None],
) -> int:
    schema = pa.schema([*((n, ARROW[t]) for n, t in columns.items()), *((n, pa.string()) for n in OWN_COLUMNS)])
    rows, left = 0, dict(wanted)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for number, table in enumerate(tables):
            for batch in _batches(connection, table, columns, first_rows=left[table.file.source]):
                writer.write_batch(batch.cast(schema))
                rows += batch.num_rows
                left[table.file.source] -= batch.num_rows
            if number % (len(tables) // 20 + 1) == 0:
                log(f"{table.file.path.name}: {table.rows} rows; {rows} rows in all so far")
    return rows


def _batches(
    connection: duckdb.DuckDBPyConnection, table: _Table, columns: Mapping[str, str], first_rows: int
) -> Iterator[pa.RecordBatch]:
    """One file's first rows in file order (DuckDB keeps insertion order), in the columns of the whole dataset."""
    values = {_own_name(name): _value(name, kind) for name, kind in table.types.items()}
    cells = [f"CAST({values.get(name, 'NULL')} AS {kind}) AS {_name(name)}" for name, kind in columns.items()]
    pairs = [
        f"{_text(_json_path(name))} || ':' || to_json(CAST({values[name]} AS VARCHAR)) || ','"
        for name in sorted(values)
    ]
    content = (
        f"sha256(concat({', '.join(pairs)}))"  # concat skips NULL: a column that is absent or NULL counts the same
    )
    own = f"left(content_hash, {ID_CHARACTERS}) AS row_id, {_text(table.file.source)} AS source, content_hash"
    query = f"SELECT {', '.join(cells)}, {content} AS content_hash FROM {table.relation} LIMIT {first_rows}"
    names = ", ".join(_name(name) for name in columns)
    yield from connection.sql(f"SELECT {names}, {own} FROM ({query})").to_arrow_reader(BATCH_ROWS)


def _number_repeats(path: Path) -> int:
    """Give the second and later rows of the same content the ids `<id>-2`, `<id>-3`, …; returns how many there are."""
    with bounded_connection(beside=path) as connection:
        numbered = connection.execute(
            "SELECT row, repeat FROM (SELECT file_row_number AS row, "
            "row_number() OVER (PARTITION BY row_id ORDER BY file_row_number) AS repeat "
            "FROM read_parquet($rows, file_row_number=true) WHERE row_id IN "
            "(SELECT row_id FROM read_parquet($rows) GROUP BY row_id HAVING count(*) > 1)) "
            "WHERE repeat > 1 ORDER BY row",
            {"rows": str(path)},
        ).fetchnumpy()
    positions, repeats = np.asarray(numbered["row"]), np.asarray(numbered["repeat"])
    if len(positions) == 0:
        return 0
    plain = path.with_suffix(".plain")
    path.rename(plain)
    with pq.ParquetFile(plain) as file, pq.ParquetWriter(path, file.schema_arrow, compression="zstd") as writer:
        start = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            ids = table["row_id"].to_pylist()
            for at in range(*np.searchsorted(positions, [start, start + len(ids)])):
                ids[positions[at] - start] += f"-{repeats[at]}"
            start += len(ids)
            writer.write_table(table.set_column(table.schema.get_field_index("row_id"), "row_id", pa.array(ids)))
    plain.unlink()
    return len(positions)


def _kept_type(kind: str) -> str:
    if kind in WHOLE_NUMBERS:
        return "BIGINT"
    return {"FLOAT": "DOUBLE", "DOUBLE": "DOUBLE", "BOOLEAN": "BOOLEAN"}.get(kind, "VARCHAR")


def _json_type(kinds: set[str]) -> str:
    """How a JSON column is read: nested and mixed values unparsed, text as it is written."""
    kinds = kinds - {"NULL"}
    if kinds and kinds <= {"UBIGINT", "BIGINT", "DOUBLE"}:
        return "DOUBLE" if "DOUBLE" in kinds else "BIGINT"
    return kinds.pop() if kinds in ({"VARCHAR"}, {"BOOLEAN"}) else "JSON"


def _value(name: str, kind: str) -> str:
    """SQL for a column's value: nested types as JSON text, a bare JSON string without its quotes."""
    column = _name(name)
    if kind == "JSON":
        return f"CASE WHEN json_type({column}) = 'VARCHAR' THEN {column} ->> '$' ELSE CAST({column} AS VARCHAR) END"
    nested = kind.startswith(NESTED) or kind.endswith("]")
    return f"CAST(to_json({column}) AS VARCHAR)" if nested else column


def _own_name(name: str) -> str:
    return f"original_{name}" if name.casefold() in OWN_COLUMNS else name


def _all(connection: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return connection.execute(query).fetchall()


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _json_path(column: str) -> str:
    return '$."' + column.replace('"', '\\"') + '"'
