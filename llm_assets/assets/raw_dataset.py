"""`<model>/raw_dataset`: the source rows as ingested; refused sources publish nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, column_schema, materialized, picture, table
from llm_assets.charts import bar_chart
from llm_assets.data import FormatConfig, SourceConfig
from llm_assets.data.formats import RowFormat, required_columns
from llm_assets.data.ingestion import REFUSED_ROWS, ROWS, IngestReport, ingest
from llm_assets.data.raw_checks import not_empty, schema_holds, sources_complete
from llm_assets.data.raw_page import (
    column_table,
    formats_of_sources,
    reading_table,
    refused_table,
    sample_table,
    source_table,
)
from llm_assets.resources.artifact_store import ArtifactStore

SCHEMA, NOT_EMPTY, SOURCES_COMPLETE = "schema", "not_empty", "sources_complete"
COLUMNS = {
    "row_id": "Hash of the row's own values; exact repeats are numbered.",
    "source": "Name of the source the row came from.",
    "content_hash": "SHA-256 of the row's values.",
    "source_file": "File of the source the row was read from; empty for a database.",
    "source_line": "Line at which the row begins; its number where there are no lines.",
}


def build_raw_dataset(
    lineage: Lineage, sources: Sequence[SourceConfig], format: FormatConfig, columns: Sequence[str] = ()
) -> dg.AssetsDefinition:
    """The raw dataset of a lineage; `columns` are needed besides those the format reads (a split column, say)."""
    format = format.inlined()
    sources = [s.model_copy(update={"row_format": s.row_format.inlined()}) if s.row_format else s for s in sources]
    required = list(dict.fromkeys([*required_columns(format), *columns]))

    @lineage.asset(
        "raw_dataset",
        stage="data",
        kinds={"duckdb", "parquet"},
        version="3",
        settings=[[_settings(source) for source in sources], required],
        check_specs=lineage.blocking_checks(
            "raw_dataset",
            names={
                SCHEMA: "The columns the format reads are there, row ids are unique, sources are the configured ones.",
                NOT_EMPTY: "There is at least one row.",
                SOURCES_COMPLETE: "Every source contributed exactly the rows the mixture takes of it.",
            },
        ),
    )
    def raw_dataset(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """The source rows as ingested and mixed, one Parquet file.

        Every row carries `row_id` (a hash of its own values, so it never moves), `source`, and the file and line it
        was read from. A malformed row is left out, counted and listed in `refused.parquet`; a missing or damaged
        file, an empty source, a missing column or too many malformed rows stop the run before anything is published.
        """
        with store.staging() as staged:
            report = ingest(sources, required, staged, context.log.info)
            formats = formats_of_sources(report, sources, format)
            rows = staged / ROWS
            checks = {
                SCHEMA: schema_holds(rows, required, list(report.held)),
                NOT_EMPTY: not_empty(rows),
                SOURCES_COMPLETE: sources_complete(rows, report.held),
            }
            artifact = store.publish(context.asset_key, staged)
        return materialized(artifact, _metadata(artifact.path, report, formats), checks)

    return raw_dataset


def _settings(source: SourceConfig) -> dict[str, Any]:
    """What decides the bytes: of a source's own format that is the columns it needs."""
    needs = required_columns(source.row_format) if source.row_format else ()
    return {**source.model_dump(mode="json", exclude={"row_format", "max_refused_share"}), "needs": list(needs)}


def _metadata(path: Path, report: IngestReport, formats: dict[str, RowFormat]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/row_count": report.rows,
        "dagster/column_schema": column_schema(path / ROWS, COLUMNS),
        "read_rows": sum(source.read for source in report.sources.values()),
        "refused_rows": report.refused,
        "repeated_rows": report.repeats,
        "sources": table(source_table(report, formats)),
        "columns": table(column_table(path / ROWS, report)),
        "reads_as": table(reading_table(report, formats)),
        "sample": table(sample_table(path / ROWS, report)),
        "source_picture": picture(bar_chart("Rows by source", "rows", report.held), "rows by source"),
    }
    if report.refused:
        metadata["refused"] = table(refused_table(path / REFUSED_ROWS))
    return metadata
