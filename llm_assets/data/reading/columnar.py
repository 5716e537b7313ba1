"""Parquet files, tables and queries: columns come as Arrow batches, and DuckDB writes their nested values as JSON.

A database promises no order, so what it returns is sorted by all its columns; a DuckDB file's own tables and SQLite's
keep their insertion order and are read as they stand. SQLite is read with Python's own driver, which is always there;
servers are attached by DuckDB, whose extension for them is fetched on first use.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.reading.batches import BATCH_ROWS, TEXT, Batch, Damage, as_text, batched
from llm_assets.data.reading.batches import NESTED as NESTED_KIND
from llm_assets.data.source_files import SourceFile
from llm_assets.data.sources import URL, SourceConfig, SourceMissing, SourceUnreadable, redacted
from llm_assets.data.spilling import bounded_connection

WHOLE_NUMBERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
KEPT = (*WHOLE_NUMBERS, "FLOAT", "DOUBLE", "BOOLEAN", "VARCHAR")
NESTED = ("STRUCT", "MAP", "UNION", "VARIANT")
SQLITE_MAGIC = b"SQLite format 3\0"


class DatabaseUnavailable(LLMAssetsError):
    """A database cannot be opened or attached."""


class QueryInvalid(LLMAssetsError):
    """A source's query is not one SELECT, or the database refuses it."""


def parquet_batches(file: SourceFile) -> Iterator[Batch]:
    """Yield the rows of a Parquet file, a part of a row group at a time.

    Raises:
        SourceUnreadable: the file is damaged.
    """
    try:
        with (
            file.open() as stored,
            pq.ParquetFile(stored, buffer_size=2**20, pre_buffer=False) as parquet,
            duckdb.connect(config={"python_enable_replacements": False, "threads": 1}) as connection,
        ):
            reader = pa.RecordBatchReader.from_batches(
                parquet.schema_arrow, parquet.iter_batches(BATCH_ROWS, use_threads=False)
            )
            connection.register("rows", reader)
            yield from _relation_batches(connection, "rows")
    except duckdb.NotImplementedException as error:
        raise SourceUnreadable(
            f"{file.path}: a column has a type that cannot be read ({error}). Leave it out, or write it as float32."
        ) from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SourceUnreadable(f"{file.path} cannot be read as parquet: {error}. Repair the file.") from error


def database_batches(source: SourceConfig, scratch: Path) -> Iterator[Batch]:
    """Yield the rows of a table or query; what sorting cannot hold goes to `scratch`.

    Raises:
        DatabaseUnavailable: the database cannot be opened.
        SourceMissing: it has no such table.
        QueryInvalid: the query is not one SELECT, or is refused.
    """
    database = str(source.database)
    if not URL.match(database):
        path = Path(database).expanduser()
        if not path.is_file():
            raise DatabaseUnavailable(
                f"Source '{source.label}': no database at {database} (looked in {Path.cwd()}). Correct the path."
            )
        with path.open("rb") as file:
            if file.read(len(SQLITE_MAGIC)) == SQLITE_MAGIC:
                yield from _sqlite_batches(path, source)
                return
    yield from _attached_batches(database, source, scratch)


def _attached_batches(database: str, source: SourceConfig, scratch: Path) -> Iterator[Batch]:
    selected, is_file = _select(source), not URL.match(database)
    with bounded_connection(beside=scratch / "database", memory_limit="512MB") as connection:
        try:
            place = str(Path(database).expanduser()) if is_file else database
            connection.execute(f"ATTACH '{place.replace(chr(39), chr(39) * 2)}' AS origin (READ_ONLY)")
            connection.execute("USE origin")
        except duckdb.Error as error:
            reason = str(error).replace(database, redacted(database)).split("\n")[0]
            raise DatabaseUnavailable(
                f"Source '{source.label}': its database cannot be attached: {reason}. Check the name, the rights and "
                "the network; DuckDB fetches its extension for a server on first use."
            ) from error
        try:
            order = "" if is_file and source.table else " ORDER BY ALL"
            yield from _relation_batches(connection, f"({selected}){order}")
        except duckdb.Error as error:
            raise _refused_by_database(source, str(error).split("\n")[0]) from error


def _relation_batches(connection: duckdb.DuckDBPyConnection, relation: str) -> Iterator[Batch]:
    described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    cells = ", ".join(f"{_value(name, kind)} AS {_name(name)}" for name, kind, *_ in described)
    nested = {name for name, kind, *_ in described if _is_nested(kind)}
    first = 1
    for batch in connection.sql(f"SELECT {cells} FROM {relation}").to_arrow_reader(BATCH_ROWS):
        columns, kinds = {}, {}
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            columns[name], kinds[name] = _text_column(values, NESTED_KIND if name in nested else TEXT)
        yield _decodable(Batch(range(first, first + batch.num_rows), columns, kinds))
        first += batch.num_rows


def _decodable(batch: Batch) -> Batch:
    """The batch without the rows whose bytes are no text: a file may say UTF-8 and hold something else."""
    damage: dict[int, Damage] = {}
    for name, values in batch.columns.items():
        try:
            values.validate(full=True)
        except pa.ArrowInvalid:
            for at, content in enumerate(values.cast(pa.binary()).to_pylist()):
                if content is not None and (detail := _not_utf8(content)):
                    damage[at] = Damage("bad_encoding", f"column '{name}': {detail}", content[:200])
    if not damage:
        return batch
    places = [at for at in range(len(batch.lines)) if at not in damage]
    columns = {name: values.take(pa.array(places, pa.int64())) for name, values in batch.columns.items()}
    refused = [(batch.lines[at], why) for at, why in sorted(damage.items())]
    return Batch([batch.lines[at] for at in places], columns, batch.kinds, refused)


def _not_utf8(content: bytes) -> str:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"byte {content[error.start]:#04x} is not utf-8, near {content[max(0, error.start - 20) :][:40]!r}"
    return ""


def _text_column(values: pa.Array, kind: str) -> tuple[pa.Array, frozenset[str]]:
    if pa.types.is_string(values.type):
        return values, frozenset((kind,) if values.null_count < len(values) else ())
    return as_text(values.to_pylist())


def _sqlite_batches(path: Path, source: SourceConfig) -> Iterator[Batch]:
    try:
        with closing(sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)) as connection:
            cursor = connection.execute(_select(source))
            names = [column[0] for column in cursor.description]
            rows = (dict(zip(names, map(_from_sqlite, row), strict=True)) for row in cursor)
            yield from batched((n, row, sum(len(str(v)) for v in row.values())) for n, row in enumerate(rows, start=1))
    except sqlite3.Error as error:
        raise _refused_by_database(source, str(error)) from error


def _from_sqlite(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _select(source: SourceConfig) -> str:
    """The one SELECT that a source stands for."""
    if source.table:
        return "SELECT * FROM " + ".".join(_name(part) for part in source.table.split("."))
    query = str(source.query).strip().rstrip(";")
    try:
        statements = duckdb.extract_statements(query)
    except duckdb.Error as error:
        raise _refused_by_database(source, str(error).split("\n")[0]) from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise QueryInvalid(
            f"Source '{source.label}': the query is not one SELECT: {query[:120]}. Write a single SELECT."
        )
    return query


def _refused_by_database(source: SourceConfig, reason: str) -> LLMAssetsError:
    if source.table:
        return SourceMissing(
            f"Source '{source.label}': table {source.table} cannot be read: {reason}. Correct the table's name."
        )
    return QueryInvalid(f"Source '{source.label}': the query fails: {reason}. Correct it; it runs in its database.")


def _value(name: str, kind: str) -> str:
    """SQL for a column: numbers, booleans and text as they are, nested values as JSON text, the rest as text."""
    column = _name(name)
    if _is_nested(kind):
        return f"CAST(to_json({column}) AS VARCHAR)"
    return column if kind in KEPT else f"CAST({column} AS VARCHAR)"


def _is_nested(kind: str) -> bool:
    return kind.startswith(NESTED) or kind.endswith("]")


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
