"""The child process that executes model-written SQL. It imports DuckDB alone and speaks one JSON line per request.

Every guard is needed: DuckDB's own limits leave single scalar calls (`repeat('x', 2000000000)`) running past an
interrupt and past `memory_limit`, so the kernel caps the address space and the parent kills what does not answer.

    {"open": {"context": "<sql>", "data_sets": 3}}  ->  {"error": null}
    {"query": "<sql>"}  ->  {"error": null, "ordered": false, "results": [[[cell, ...], ...], ...]}
"""

import ctypes
import decimal
import json
import math
import resource
import signal
import sys
import threading
from dataclasses import dataclass
from typing import Any

import duckdb

CONTEXT_STATEMENTS = {"CREATE", "INSERT", "UPDATE", "DELETE", "ALTER", "VIEW"}
INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT")
NUMBERS = (*INTEGERS, "DECIMAL", "FLOAT", "DOUBLE")
SESSION = {
    "threads": 1,
    "memory_limit": "256MB",
    "max_temp_directory_size": "0B",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}


class Refused(Exception):
    """The text is not what may be executed here."""


def main() -> None:
    """Serve requests from standard input until it closes."""
    settings = json.loads(sys.argv[1])
    confine(settings["memory_bytes"])
    sandbox = Sandbox(settings["soft_limit_seconds"], settings["max_result_rows"], settings["max_result_bytes"])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(sandbox.answer(json.loads(line)) + "\n")
        sys.stdout.flush()


def confine(memory_bytes: int) -> None:
    """Cap the address space, forbid writing files, and end when the parent ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@dataclass
class Column:
    """A column of a context's table, and how its values are redrawn."""

    name: str
    is_number: bool
    is_distinct: bool = False

    def shuffled(self, number: int) -> str:
        """SQL for the list of its values in the order of data set `number`."""
        return f"list({_q(self.name)} ORDER BY hash({_q(self.name)}, rowid, {number}), rowid) AS {_q(self.name)}"

    def drawn(self, place: int, number: int) -> str:
        """SQL for its value in row `i_` of a redrawn table, from the list of its values in a shuffled order."""
        values = f"s.{_q(self.name)}"
        if self.is_number and self.is_distinct:
            spread = f"(list_max({values}) - list_min({values}) + 1)"
            return f"{values}[i_ % s.n_ + 1] + (i_ // s.n_) * {spread} AS {_q(self.name)}"
        return f"{values}[(hash(i_, {place}, {number}) % s.n_)::BIGINT + 1] AS {_q(self.name)}"


class Sandbox:
    """One locked connection; each opened context lives in its own in-memory databases."""

    def __init__(self, soft_limit_seconds: float, max_result_rows: int, max_result_bytes: int) -> None:
        self.soft_limit_seconds = soft_limit_seconds
        self.max_result_rows = max_result_rows
        self.max_result_bytes = max_result_bytes
        self.data_sets: list[str] = []
        self.connection = duckdb.connect(":memory:", config=dict(SESSION))
        self.connection.execute("SET enable_external_access = false")
        self.connection.execute("SET lock_configuration = true")

    def answer(self, request: dict[str, Any]) -> str:
        """Run one request under the soft time limit; every failure is an `error` text, its kind before the colon."""
        timer = threading.Timer(self.soft_limit_seconds, self.connection.interrupt)
        timer.start()
        try:
            reply = self.open(**request["open"]) if "open" in request else self.query(request["query"])
        except Refused as error:
            reply = {"error": f"refused: {error}"}
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            reply = {"error": f"memory: {_first_line(error)}"}
        except duckdb.InterruptException:
            reply = {"error": f"timeout: still running after {self.soft_limit_seconds:g} s"}
        except (duckdb.Error, ValueError, RuntimeError) as error:
            reply = {"error": f"failed: {_first_line(error)}"}
        finally:
            timer.cancel()
        text = json.dumps(reply)
        return text if len(text) <= self.max_result_bytes else json.dumps({"error": "too_large: result"})

    def open(self, context: str, data_sets: int) -> dict[str, Any]:
        """Replace the current context; data set 0 is the context itself, the others redraw its rows.

        A context that defines views keeps to its own data: a view's text names the database it was made in.
        """
        for name in self.data_sets:
            self.connection.execute(f"DETACH {name}")
        self.data_sets = []
        self._attach("data_0")
        for statement in self.connection.extract_statements(context):
            if statement.type.name not in CONTEXT_STATEMENTS:
                raise Refused(f"a context may hold CREATE, INSERT and the like, not {statement.type.name}")
            self.connection.execute(statement)
        self.connection.execute("USE memory")
        views = self._rows("SELECT 1 FROM duckdb_views() WHERE database_name = 'data_0' AND NOT internal")
        if data_sets > 1 and not views:
            tables = self._tables()
            for number in range(1, data_sets):
                self._redraw(number, tables)
        return {"error": None}

    def query(self, sql: str) -> dict[str, Any]:
        """Execute one SELECT on every data set inside a read-only transaction."""
        statements = self.connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise Refused(
                f"one SELECT is executed, not {', '.join(s.type.name for s in statements) or 'an empty text'}"
            )
        return {
            "error": None,
            "ordered": self._is_ordered(sql),
            "results": [self._select(d, sql) for d in self.data_sets],
        }

    def _select(self, data_set: str, sql: str) -> list[list[Any]]:
        self.connection.execute(f"USE {data_set}")
        # A SELECT can delete: `WITH d AS (DELETE ... RETURNING *) SELECT ...` has the statement type SELECT.
        self.connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            rows = self.connection.execute(sql).fetchmany(self.max_result_rows + 1)
        finally:
            self.connection.execute("ROLLBACK")
            self.connection.execute("USE memory")
        if len(rows) > self.max_result_rows:
            raise Refused(f"more than {self.max_result_rows} result rows")
        return [[_cell(value) for value in row] for row in rows]

    def _is_ordered(self, sql: str) -> bool:
        tree = json.loads(self._rows("SELECT json_serialize_sql(?)", [sql])[0][0])
        modifiers = tree["statements"][0]["node"]["modifiers"] if not tree["error"] else []
        return any(modifier["type"] == "ORDER_MODIFIER" for modifier in modifiers)

    def _attach(self, name: str) -> None:
        self.connection.execute(f"ATTACH ':memory:' AS {name}")
        self.data_sets.append(name)
        self.connection.execute(f"USE {name}")

    def _tables(self) -> dict[str, list[Column]]:
        """Columns of the context's tables, each with whether it is a number and whether its values are all distinct."""
        tables: dict[str, list[Column]] = {}
        for table, name, kind in self._rows(
            "SELECT table_name, column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = 'data_0' ORDER BY table_name, column_index"
        ):
            tables.setdefault(table, []).append(Column(name, is_number=kind.startswith(NUMBERS)))
        for table, columns in tables.items():
            counts = ", ".join(f"count(DISTINCT {_q(column.name)})" for column in columns)
            ((rows, *distinct),) = self._rows(f"SELECT count(*), {counts} FROM data_0.{_q(table)}")
            for column, count in zip(columns, distinct, strict=True):
                column.is_distinct = count == rows
        return tables

    def _redraw(self, number: int, tables: dict[str, list[Column]]) -> None:
        """Fill every table with three times its rows, each column drawn apart from the others.

        A number whose values are all distinct, a key above all, is permuted in three copies, each above the one before:
        no new ties, and the first copy still joins. Everything else is drawn with replacement from its own values.
        """
        name = f"data_{number}"
        self._attach(name)
        try:
            for table, columns in tables.items():
                lists = ", ".join(column.shuffled(number) for column in columns)
                drawn = ", ".join(column.drawn(place, number) for place, column in enumerate(columns))
                source = f"(SELECT count(*) AS n_, {lists} FROM data_0.{_q(table)}) AS s"
                rows = "LATERAL range(3 * s.n_) AS draw(i_)"
                self.connection.execute(f"CREATE TABLE {_q(table)} AS SELECT {drawn} FROM {source}, {rows}")
        except (duckdb.InterruptException, duckdb.OutOfMemoryException):
            raise
        except duckdb.Error:  # a type that has no such copies: the other data sets decide
            self.data_sets.remove(name)
            self.connection.execute("USE memory")
            self.connection.execute(f"DETACH {name}")
        self.connection.execute("USE memory")

    def _rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, parameters).fetchall()


def _q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _cell(value: Any) -> Any:
    """A result cell as JSON: 3, 3.0 and DECIMAL 3.00 are the same number, kept to 9 significant digits."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, decimal.Decimal)):
        return float(f"{value:.9g}") if math.isfinite(value) else str(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    main()
