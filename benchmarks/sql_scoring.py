"""Scoring answers by executing them: the sandbox, against a fresh `duckdb.connect()` per row.

A row is its tables, the expected SQL and the answer. The sandbox is a separate, confined process that a runaway query
cannot take down; the anchor runs in the benchmark's own process with no limit at all. CPU seconds count both.
"""

from pathlib import Path
from typing import Any

import duckdb

from benchmarks._harness import Row, cpu_seconds, interleaved, main
from llm_assets.demo.text_to_sql import sample
from llm_assets.evaluation.sql_sandbox import SqlSandbox, SqlSandboxConfig

ANCHOR = "a fresh `duckdb.connect()` per row, no sandbox"
ONE_SET, DEFAULT = "ours, one data set", "ours, default data sets"


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Executions of a query on a data set, per CPU second."""
    made = [sample(index, "benchmark") for index in range(30 if quick else 200)]
    data_sets = SqlSandboxConfig().data_sets
    sides = {
        ONE_SET: lambda: with_sandbox(made, SqlSandboxConfig(data_sets=1)),
        DEFAULT: lambda: with_sandbox(made, SqlSandboxConfig()),
        ANCHOR: lambda: with_connections(made),
    }
    found = interleaved(sides, rounds=1 if quick else 5)
    speed = {name: metrics["executions_per_cpu_second"] for name, metrics in found.items()}
    unit = "executions/CPU s"
    return [
        Row("SQL scoring: the row's own tables", speed[ONE_SET], speed[ANCHOR], ANCHOR, unit, "higher", 4.0),
        Row(
            f"SQL scoring: these and {data_sets - 1} redrawn ones",
            *(speed[DEFAULT], speed[ANCHOR], ANCHOR, unit, "higher", 4.0),
        ),
    ]


def with_sandbox(rows: list[dict[str, Any]], config: SqlSandboxConfig) -> dict[str, float]:
    """Open each row's tables and run expected SQL and answer on every data set; the child's start counts."""
    executions, began = 0, cpu_seconds()
    with SqlSandbox(config) as sandbox:
        for row in rows:
            sandbox.open(str(row["sql_context"]))
            for sql in (row["sql"], row["sql"]):
                result = sandbox.query(str(sql))
                if result.error:
                    raise SystemExit(f"The demo's own SQL failed: {result.error}")
                executions += len(result.results)
    return {"executions_per_cpu_second": executions / (cpu_seconds() - began)}


def with_connections(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Run both queries in a new in-memory database per row."""
    executions, began = 0, cpu_seconds()
    for row in rows:
        with duckdb.connect() as connection:
            connection.execute(str(row["sql_context"]))
            for sql in (row["sql"], row["sql"]):
                connection.execute(str(sql)).fetchall()
                executions += 1
    return {"executions_per_cpu_second": executions / (cpu_seconds() - began)}


if __name__ == "__main__":
    main("sql_scoring", measure)
