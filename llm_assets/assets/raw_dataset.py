"""`<model>/raw_dataset`: the source rows as ingested; refused sources publish nothing."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, column_schema, materialized, table
from llm_assets.data import FormatConfig, SourceConfig
from llm_assets.data.formats import required_columns
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.data.raw_checks import not_empty, schema_holds, sources_complete
from llm_assets.resources.artifact_store import ArtifactStore

SCHEMA, NOT_EMPTY, SOURCES_COMPLETE = "schema", "not_empty", "sources_complete"
COLUMNS = {
    "row_id": "Hash of the row's own values; exact repeats are numbered.",
    "source": "Name of the source the row came from.",
    "content_hash": "SHA-256 of the row's values.",
}


def build_raw_dataset(
    lineage: Lineage, sources: Sequence[SourceConfig], format: FormatConfig, columns: Sequence[str] = ()
) -> dg.AssetsDefinition:
    """The raw dataset of a lineage; `columns` are needed besides those the format reads (a split column, say)."""
    required = list(dict.fromkeys([*required_columns(format), *columns]))

    @lineage.asset(
        "raw_dataset",
        stage="data",
        kinds={"duckdb", "parquet"},
        version="1",
        settings=[list(sources), required],
        check_specs=lineage.blocking_checks(
            "raw_dataset",
            names={
                SCHEMA: "The columns the format reads are there, row ids are unique, sources are the configured ones.",
                NOT_EMPTY: "There is at least one row.",
                SOURCES_COMPLETE: "Every source contributed exactly the rows its files hold.",
            },
        ),
    )
    def raw_dataset(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """The source rows as ingested, one Parquet file.

        Every row carries `row_id` (a hash of its own values, so it never moves), `source` and `content_hash`.
        A missing file, an empty source or a missing column stops the run before anything is published.
        """
        with store.staging() as staged:
            report = ingest(sources, required, staged, context.log.info)
            rows = staged / ROWS
            checks = {
                SCHEMA: schema_holds(rows, required, list(report.held)),
                NOT_EMPTY: not_empty(rows),
                SOURCES_COMPLETE: sources_complete(rows, report.held),
            }
            artifact = store.publish(context.asset_key, staged)
        metadata = {
            "dagster/row_count": report.rows,
            "dagster/column_schema": column_schema(artifact.path / ROWS, COLUMNS),
            "repeated_rows": report.repeats,
            "sources": table([{"source": name, "rows": rows} for name, rows in report.held.items()]),
            "sample": table(_sample(artifact.path / ROWS)),
        }
        return materialized(artifact, metadata, checks)

    return raw_dataset


def _sample(path: Path) -> list[dict[str, str]]:
    """The first row, one line per column: source rows are often too wide to be one line."""
    first = next(pq.ParquetFile(path).iter_batches(1)).to_pylist()[0]
    return [{"column": name, "value": str(value)[:300]} for name, value in first.items()]
