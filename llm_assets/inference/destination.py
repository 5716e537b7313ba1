"""Where the answers of a table go: a Parquet file or a DuckDB table, once per row, model version and variant.

An answer replaces the one the same version gave to the same row; answers of other versions stay beside it. Both kinds
of destination change in one step, so a reader never sees half of a run.
"""

import fcntl
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.catalogs import from_catalog
from llm_assets.data.named_source import IN_DATABASE, THREE_PARTS
from llm_assets.data.sources import URL, SourceConfig

KEY = ("row_id", "model_name", "model_version", "variant")
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)?")


class DestinationInvalid(LLMAssetsError):
    """An output that is neither a Parquet file nor a table that can be written."""


@dataclass(frozen=True)
class Destination:
    """A Parquet file, or a table of a DuckDB file.

    Attributes:
        file: The Parquet or DuckDB file.
        table: Table, with its schema where it is in one; None for Parquet.
    """

    file: Path
    table: str | None = None

    @property
    def identity(self) -> str:
        """What tells two destinations apart, however they are written."""
        return f"{self.file.absolute()}{IN_DATABASE}{self.table or ''}"

    @classmethod
    def parse(cls, text: str) -> "Destination":
        """Read `answers.parquet`, `warehouse.duckdb::schema.table` or `catalog.schema.table`.

        Raises:
            DestinationInvalid: it is none of these, or a catalog whose tables are not those of a DuckDB file.
            CatalogUnknown: the catalog of a three-part name is not in LLM_ASSETS_CATALOGS.
        """
        if text.endswith(".parquet") and not URL.match(text):
            return cls(Path(text).expanduser())
        database, separator, table = text.rpartition(IN_DATABASE)
        if not separator and THREE_PARTS.fullmatch(text):
            found = from_catalog(SourceConfig(table=text))
            database, table = found.database or "", found.table or ""
        if not database or URL.match(database) or not NAME.fullmatch(table):
            raise DestinationInvalid(
                f"output_table {text!r} cannot be written. Give a local file such as answers.parquet, a table of a "
                "DuckDB file such as warehouse.duckdb::main.answers, or catalog.schema.table of a catalog whose "
                "database is one."
            )
        return cls(Path(database).expanduser(), table)


def refuse_unfit(destination: Destination, rows: Path | None = None, besides: Collection[str] = ()) -> None:
    """Refuse an existing file or table that holds no answers, or that cannot hold these rows as they are.

    Args:
        destination: May not exist yet.
        rows: Parquet file with what goes into it; None looks at the destination alone.
        besides: Columns of `rows` that do not go into it.

    Raises:
        DestinationInvalid: names the columns, with their types where those are the reason.
    """
    if not destination.file.exists():
        return
    with _explained(destination), _opened(destination, read_only=True) as connection:
        if destination.table and not _has_table(connection, destination):
            return
        present = _kinds(connection, _held(destination))
        if lacking := [name for name in KEY if name not in present]:
            raise DestinationInvalid(
                f"output_table {destination.identity} holds no answers: it has no column {', '.join(lacking)}, which "
                "tell whose answer a row is. Name a new table or file, or choose another output."
            )
        if rows is not None:
            _refuse_other_values(connection, rows, present, destination, besides)


def merge_answers(answers: Path, destination: Destination) -> int:
    """Put answers into a destination; returns how many rows it holds then.

    Args:
        answers: Parquet file with the columns of `KEY` and any others.
        destination: Made where it does not exist; columns it lacks are added.

    Raises:
        DestinationInvalid: as `refuse_unfit`; or it is damaged, or held by another process.
    """
    destination.file.parent.mkdir(parents=True, exist_ok=True)
    with _explained(destination), _alone(destination):
        refuse_unfit(destination, answers)
        return _into_table(answers, destination) if destination.table else _into_parquet(answers, destination)


def _into_parquet(answers: Path, destination: Destination) -> int:
    file, new = destination.file, _parquet(answers)
    unfinished = file.with_name(f".{file.name}.unfinished")
    with duckdb.connect() as connection:
        if file.exists():
            same = f"SELECT {', '.join(KEY)} FROM {_parquet(answers)}"
            kept = f"SELECT * FROM {_held(destination)} WHERE ({', '.join(KEY)}) NOT IN ({same})"
            new = f"({kept} UNION ALL BY NAME {_cast(connection, answers, destination)})"
        connection.execute(f"COPY (SELECT * FROM {new}) TO {_text(unfinished)} (FORMAT parquet, COMPRESSION zstd)")
    unfinished.replace(file)
    return pq.ParquetFile(file).metadata.num_rows


def _into_table(answers: Path, destination: Destination) -> int:
    table, new = _held(destination), f"SELECT * FROM {_parquet(answers)}"
    with _opened(destination) as connection:
        connection.execute("BEGIN")
        if "." in str(destination.table):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.split('.')[0]}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS {new} LIMIT 0")
        present = _kinds(connection, table)
        for name, kind in _kinds(connection, _parquet(answers)).items():
            if name not in present:
                connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}')
        same = " AND ".join(f"old.{name} = new.{name}" for name in KEY)
        connection.execute(f"DELETE FROM {table} AS old USING ({new}) AS new WHERE {same}")
        connection.execute(f"INSERT INTO {table} BY NAME {new}")
        connection.execute("COMMIT")
        return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]


def _refuse_other_values(
    connection: duckdb.DuckDBPyConnection,
    rows: Path,
    present: Mapping[str, str],
    destination: Destination,
    besides: Collection[str],
) -> None:
    """Refuse values that a column would change: 1.7 in a column of whole numbers becomes 2 without a word."""
    for name, kind in _kinds(connection, _parquet(rows)).items():
        held = present.get(name, kind)
        if held == kind or name in besides:
            continue
        changed = f'"{name}" IS DISTINCT FROM TRY_CAST(TRY_CAST("{name}" AS {held}) AS {kind})'
        example = connection.execute(f'SELECT "{name}" FROM {_parquet(rows)} WHERE {changed} LIMIT 1').fetchone()
        if example:
            raise DestinationInvalid(
                f"output_table {destination.identity} cannot take the answers: its column {name} is {held}, theirs "
                f"is {kind}, and {example[0]!r} would be changed. Convert one of them, or choose another output."
            )


def _cast(connection: duckdb.DuckDBPyConnection, answers: Path, destination: Destination) -> str:
    """The answers in the types that a file holds already; `refuse_unfit` has seen that no value changes."""
    present = _kinds(connection, _held(destination))
    other = {n: present[n] for n, kind in _kinds(connection, _parquet(answers)).items() if present.get(n, kind) != kind}
    casts = ", ".join(f'CAST("{name}" AS {kind}) AS "{name}"' for name, kind in other.items())
    return f"SELECT *{f' REPLACE ({casts})' if casts else ''} FROM {_parquet(answers)}"


@contextmanager
def _explained(destination: Destination) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise DestinationInvalid(
            f"output_table {destination.identity} cannot take the answers: {str(error).splitlines()[0]} Close what "
            "holds it, move it away if its columns mean something else, or choose another output."
        ) from error


@contextmanager
def _alone(destination: Destination) -> Iterator[None]:
    """One writer at a time, whatever home it works in; DuckDB keeps other processes out of its files itself."""
    with destination.file.with_name(f".{destination.file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(destination: Destination, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(str(destination.file), read_only=read_only) if destination.table else duckdb.connect()


def _has_table(connection: duckdb.DuckDBPyConnection, destination: Destination) -> bool:
    schema, _, name = str(destination.table).rpartition(".")
    told = "SELECT 1 FROM duckdb_columns() WHERE lower(schema_name) = lower(?) AND lower(table_name) = lower(?)"
    return connection.execute(told, [schema or "main", name]).fetchone() is not None


def _kinds(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """Column to DuckDB type."""
    return {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()}


def _held(destination: Destination) -> str:
    """What is there, as SQL names it."""
    if destination.table is None:
        return _parquet(destination.file)
    return ".".join(f'"{part}"' for part in destination.table.split("."))


def _parquet(path: Path) -> str:
    """One file and its own columns: neither `[` in its name nor `day=…` in its directory means anything."""
    literal = Path(re.sub(r"([\[*?])", r"[\1]", str(path)))
    return f"read_parquet({_text(literal)}, hive_partitioning = false)"


def _text(path: Path) -> str:
    quoted = str(path).replace("'", "''")
    return f"'{quoted}'"
