"""What must hold of ingested rows before anything is made of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from llm_assets.core import CheckResult

SAMPLE_ROWS = 20


def schema_holds(rows: Path, required_columns: Sequence[str], sources: Sequence[str]) -> CheckResult:
    """The columns the format reads exist, ids are unique and well formed, and every row has a configured source.

    Verified with pandera batch by batch; uniqueness over the whole file with DuckDB.
    """
    file = pq.ParquetFile(rows)
    missing = [name for name in required_columns if name not in file.schema_arrow.names]
    failures: list[dict[str, Any]] = [{"column": name, "problem": "missing", "value": ""} for name in missing]
    for batch in file.iter_batches(65_536, columns=["row_id", "source", "content_hash"]):
        failures += _failures(batch.to_pandas(), sources)
        if len(failures) > SAMPLE_ROWS:
            break
    with duckdb.connect() as connection:
        query = "SELECT count(*) - count(DISTINCT row_id) FROM read_parquet(?)"
        repeated = connection.execute(query, [str(rows)]).fetchall()[0][0]
    if repeated:
        failures.append({"column": "row_id", "problem": "not unique", "value": f"{repeated} repeats"})
    return CheckResult(
        passed=not failures,
        summary=f"{file.metadata.num_rows} rows with columns {', '.join(file.schema_arrow.names)}: "
        + (f"{len(failures)} failures, first: {failures[0]}" if failures else "as promised."),
        numbers={"failures": len(failures), "repeated_row_ids": int(repeated)},
        rows=failures[:SAMPLE_ROWS],
    )


def not_empty(rows: Path) -> CheckResult:
    """There is at least one row."""
    count = pq.read_metadata(rows).num_rows
    return CheckResult(passed=count > 0, summary=f"{count} rows.", numbers={"rows": count})


def sources_complete(rows: Path, held: Mapping[str, int]) -> CheckResult:
    """Every source contributed exactly the rows the mixture takes of it."""
    with duckdb.connect() as connection:
        query = "SELECT source, count(*) FROM read_parquet(?) GROUP BY source"
        found = dict(connection.execute(query, [str(rows)]).fetchall())
    table = [
        {"source": name, "rows_held": held.get(name, 0), "rows_ingested": found.get(name, 0)}
        for name in [*held, *sorted(set(found) - set(held))]
    ]
    wrong = [row for row in table if row["rows_held"] != row["rows_ingested"]]
    return CheckResult(
        passed=bool(table) and not wrong,
        summary=f"{len(table) - len(wrong)} of {len(table)} sources are complete."
        + "".join(f" {r['source']}: {r['rows_ingested']} of {r['rows_held']} rows." for r in wrong[:3]),
        numbers={"sources": len(table), "incomplete_sources": len(wrong)},
        rows=table[:SAMPLE_ROWS],
    )


def _failures(frame: Any, sources: Sequence[str]) -> list[dict[str, Any]]:
    import pandera.pandas as pa
    from pandera.errors import SchemaErrors

    schema = pa.DataFrameSchema(
        {
            "row_id": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{16}(-\d+)?$")),
            "source": pa.Column(str, pa.Check.isin(list(sources))),
            "content_hash": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{64}$")),
        }
    )
    try:
        schema.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.head(SAMPLE_ROWS).to_dict("records")
        return [{"column": c["column"], "problem": str(c["check"]), "value": str(c["failure_case"])} for c in cases]
    return []
