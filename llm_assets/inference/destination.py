"""Where the answers of a table go: a Parquet file or a DuckDB table, once per row, model version and variant.

An answer replaces the one the same version gave to the same row; answers of other versions stay beside it. Both kinds
of destination change in one step, so a reader never sees half of a run.
"""

import re
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


def merge_answers(answers: Path, destination: Destination) -> int:
    """Put answers into a destination; returns how many rows it holds then.

    Args:
        answers: Parquet file with the columns of `KEY` and any others.
        destination: Made where it does not exist; columns it lacks are added.

    Raises:
        DestinationInvalid: it exists with other types, is damaged, or is held by another process.
    """
    destination.file.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _into_table(answers, destination) if destination.table else _into_parquet(answers, destination.file)
    except duckdb.Error as error:
        raise DestinationInvalid(
            f"output_table {destination.identity} cannot take the answers: {str(error).splitlines()[0]} Close what "
            "holds it, move it away if its columns mean something else, or choose another output."
        ) from error


def _into_parquet(answers: Path, file: Path) -> int:
    unfinished = file.with_name(f".{file.name}.unfinished")
    with duckdb.connect() as connection:
        new = f"SELECT * FROM read_parquet({_text(answers)})"
        if file.exists():
            same = f"SELECT {', '.join(KEY)} FROM read_parquet({_text(answers)})"
            kept = f"SELECT * FROM read_parquet({_text(file)}) WHERE ({', '.join(KEY)}) NOT IN ({same})"
            new = f"{kept} UNION ALL BY NAME {new}"
        connection.execute(f"COPY ({new}) TO {_text(unfinished)} (FORMAT parquet, COMPRESSION zstd)")
    unfinished.replace(file)
    return pq.ParquetFile(file).metadata.num_rows


def _into_table(answers: Path, destination: Destination) -> int:
    table = ".".join(f'"{part}"' for part in str(destination.table).split("."))
    new = f"SELECT * FROM read_parquet({_text(answers)})"
    with duckdb.connect(str(destination.file)) as connection:
        connection.execute("BEGIN")
        if "." in str(destination.table):
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.split('.')[0]}")
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} AS {new} LIMIT 0")
        present = {row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()}
        for name, kind, *_ in connection.execute(f"DESCRIBE {new}").fetchall():
            if name not in present:
                connection.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}')
        same = " AND ".join(f"old.{name} = new.{name}" for name in KEY)
        connection.execute(f"DELETE FROM {table} AS old USING ({new}) AS new WHERE {same}")
        connection.execute(f"INSERT INTO {table} BY NAME {new}")
        connection.execute("COMMIT")
        return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]


def _text(path: Path) -> str:
    quoted = str(path).replace("'", "''")
    return f"'{quoted}'"
