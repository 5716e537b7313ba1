"""`<model>/chat_dataset`: conversations in three splits; every row left out is counted and kept with its reason."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, column_schema, materialized, picture, table
from llm_assets.charts import bar_chart
from llm_assets.data import CurationConfig, FormatConfig, SplitConfig
from llm_assets.data.chat_checks import drop_share, no_split_leakage, roles_alternate
from llm_assets.data.chat_dataset import build_chat_dataset as write_chat_dataset
from llm_assets.data.curation import dropped_by_reason
from llm_assets.data.ingestion import ROWS
from llm_assets.resources.artifact_store import ArtifactStore

ROLES, NO_SPLIT_LEAKAGE, DROP_SHARE = "roles", "no_split_leakage", "drop_share"
COLUMNS = {
    "row_id": "The raw row this conversation was made from.",
    "messages": "Turns in OpenAI's format, the answer last; tool calls as JSON text.",
    "tools": "JSON text of the tools offered, or null.",
    "extras": "JSON object of the source columns kept for evaluation.",
}
CHECK_BOUNDS = {"max_drop_share", "leakage_similarity", "max_leakage_share"}  # decide verdicts, not bytes


def build_chat_dataset(
    lineage: Lineage,
    format: FormatConfig,
    curation: CurationConfig,
    split: SplitConfig,
    formats_by_source: Mapping[str, FormatConfig] = MappingProxyType({}),
) -> dg.AssetsDefinition:
    """The curated conversations of a lineage; some sources may have formats of their own."""
    settings = [format, dict(formats_by_source), curation.model_dump(exclude=CHECK_BOUNDS), split]

    @lineage.asset(
        "chat_dataset",
        stage="data",
        kinds={"duckdb", "parquet"},
        version="1",
        settings=settings,
        deps=[lineage.key("raw_dataset")],
        check_specs=lineage.blocking_checks(
            "chat_dataset",
            names={
                ROLES: "Every conversation is system?, user, assistant, … without empty turns.",
                NO_SPLIT_LEAKAGE: "No prompt stands in two splits; few held-out rows are like training rows.",
                DROP_SHARE: "Not too many rows were dropped, and none is unaccounted for.",
            },
        ),
    )
    def chat_dataset(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """Conversations (OpenAI messages), filtered, de-duplicated and split into train, validation and test.

        A row's split is decided by the hash of its group, so adding rows never moves a row. `dropped.parquet` holds
        every row that was left out, with its reason.
        """
        raw = store.open(context.instance, lineage.key("raw_dataset"))
        with store.staging() as staged:
            report = write_chat_dataset(
                raw.path / ROWS,
                staged,
                format,
                curation,
                split,
                formats_by_source=formats_by_source,
                log=context.log.info,
            )
            checks = {
                ROLES: roles_alternate(staged),
                NO_SPLIT_LEAKAGE: no_split_leakage(staged, curation.leakage_similarity, curation.max_leakage_share),
                DROP_SHARE: drop_share(report, curation.max_drop_share),
            }
            artifact = store.publish(context.asset_key, staged)
        return materialized(artifact, _metadata(artifact.path, report), checks)

    return chat_dataset


def _metadata(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "dagster/row_count": report["kept"],
        "dagster/column_schema": column_schema(path / "train.parquet", COLUMNS),
        "ingested_rows": report["ingested"],
        "dropped_rows": sum(report["dropped"].values()),
        **{f"{split}_rows": rows for split, rows in report["splits"].items()},
        "sample": table(_first_conversation(path)),
    }
    if report["dropped"]:
        metadata["dropped"] = table(dropped_by_reason(path / "dropped.parquet", report["dropped"]))
        metadata["drop_picture"] = picture(bar_chart("Dropped rows", "rows", report["dropped"]), "rows by reason")
    return metadata


def _first_conversation(path: Path) -> list[dict[str, Any]]:
    row = next(pq.ParquetFile(path / "train.parquet").iter_batches(1)).to_pylist()[0]
    return [{"role": turn["role"], "content": turn["content"] or turn["tool_calls"]} for turn in row["messages"]]
