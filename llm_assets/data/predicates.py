"""Predicates of a team's own: a SQL expression over the source columns, or a Python function over the conversation.

SQL runs in a connection that can reach no file, no setting and no variable. Python is code: only the function a YAML
names is ever imported, when the YAML is loaded.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from llm_assets.core import LLMAssetsError
from llm_assets.data.messages import RowRefused

ROWS = "source_rows"
LOCKED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": False,
    "memory_limit": "1GB",
    "threads": 1,
}
Predicate = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], bool]
CONTRACT = "Write a function that takes (messages, row) and returns True to keep the row."


class PredicateInvalid(LLMAssetsError):
    """`curation.where` is no predicate over the source columns."""


class PredicateFailed(LLMAssetsError):
    """A predicate raised, or answered something else than true or false, on one row."""


def refuse_bad_sql(where: str) -> str:
    """Return a SQL predicate that parses as one expression.

    Raises:
        ValueError: DuckDB does not parse it, or it is more than an expression.
    """
    if not where.strip():
        raise ValueError("where is an empty SQL expression. Write one, or leave it out.")
    try:
        statements = duckdb.extract_statements(_select(where))
    except duckdb.Error as error:
        raise ValueError(f"where {where!r} is no SQL expression: {str(error).splitlines()[0]}. Correct it.") from None
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise ValueError(f"where {where!r} is more than one SQL expression. Write what may stand after WHERE.")
    return where


class SQLPredicate:
    """A DuckDB expression that says which of a batch's rows are kept; null counts as no."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, where: str):
        self._connection, self.where = connection, where

    def keeps(self, batch: pa.RecordBatch) -> list[bool]:
        """One boolean per row of a batch of raw rows.

        Raises:
            PredicateInvalid: it names an unknown column or function, or is no boolean.
            PredicateFailed: it fails on a row; names the first one.
        """
        try:
            return self._ask(batch)
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
        try:
            self._ask(batch.slice(0, 0))
        except duckdb.Error:
            raise PredicateInvalid(
                f"curation.where '{self.where}': {reason}. Correct it; it sees the source's columns: "
                f"{', '.join(batch.schema.names)}."
            ) from None
        row_id = self._first_failing(batch)
        raise PredicateFailed(
            f"curation.where '{self.where}' fails on row {row_id}: {reason}. Guard it, for example with TRY_CAST."
        )

    def _ask(self, batch: pa.RecordBatch) -> list[bool]:
        self._connection.register(ROWS, pa.Table.from_batches([batch]))
        try:
            return [kept for (kept,) in self._connection.execute(_select(self.where, f" FROM {ROWS}")).fetchall()]
        finally:
            self._connection.unregister(ROWS)

    def _first_failing(self, batch: pa.RecordBatch) -> str:
        low, high = 0, batch.num_rows  # rows before `low` pass, one before `high` fails
        while high - low > 1:
            middle = (low + high) // 2
            try:
                self._ask(batch.slice(low, middle - low))
                low = middle
            except duckdb.Error:
                high = middle
        return batch.column("row_id")[low].as_py()


@contextmanager
def sql_predicate(where: str) -> Iterator[SQLPredicate]:
    """Open a locked connection for one predicate: no files, no extensions, no settings, no Python variables."""
    with duckdb.connect(config=LOCKED) as connection:
        connection.execute("SET lock_configuration = true")
        yield SQLPredicate(connection, where)


def find_predicate(name: str) -> Predicate:
    """Import the function that `package.module:function` names.

    Raises:
        ValueError: it is misspelled, cannot be imported, or is no function of two arguments.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ValueError(f"predicate {name!r} is not of the form package.module:function. {CONTRACT}")
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"predicate {name!r} cannot be imported: {error}. Correct the name or PYTHONPATH.") from error
    try:
        inspect.signature(found).bind([], {})
    except (TypeError, ValueError) as error:
        raise ValueError(f"predicate {name!r} does not take two arguments: {error}. {CONTRACT}") from None
    return found


def source_digest(name: str) -> str:
    """SHA-256 of the module that holds a predicate, so that an edit to it marks the asset stale."""
    module = importlib.import_module(name.partition(":")[0])
    return hashlib.sha256(Path(inspect.getfile(module)).read_bytes()).hexdigest()


def ask_predicate(
    predicate: Predicate, name: str, messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> None:
    """Raise `RowRefused` with `predicate` when the function of that name says no.

    Raises:
        PredicateFailed: the function raised or answered something else than True or False; names the row.
    """
    try:
        kept = predicate(messages, row)
    except Exception as error:
        raise PredicateFailed(
            f"curation.predicate {name} raised {type(error).__name__} on row {row['row_id']}: {error}. "
            "Make it answer True or False for such a row."
        ) from error
    if not isinstance(kept, bool):
        raise PredicateFailed(
            f"curation.predicate {name} answered {kept!r} on row {row['row_id']}. It must answer True or False."
        )
    if not kept:
        raise RowRefused("predicate", f"{name} says no")


def _select(where: str, source: str = "") -> str:
    return f"SELECT coalesce(CAST((\n{where}\n) AS BOOLEAN), false){source}"
