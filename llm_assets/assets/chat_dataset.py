"""`<model>/chat_dataset`: conversations in three splits; every row left out is counted and kept with its reason."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, column_schema, materialized, picture, table
from llm_assets.charts import funnel_chart, histogram
from llm_assets.data import CurationConfig, FormatConfig, SplitConfig
from llm_assets.data.chat_checks import drop_share, no_split_leakage, roles_alternate
from llm_assets.data.chat_dataset import DROPPED_ROWS
from llm_assets.data.chat_dataset import build_chat_dataset as write_chat_dataset
from llm_assets.data.dropped import dropped_by_reason, dropped_samples
from llm_assets.data.formats import resolve_templates
from llm_assets.data.funnel import funnel, sampled_lengths, split_sizes
from llm_assets.data.ingestion import ROWS
from llm_assets.data.messages import spoken_as
from llm_assets.registry.prompts import write_prompt_record
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

ROLES, NO_SPLIT_LEAKAGE, DROP_SHARE = "roles", "no_split_leakage", "drop_share"
COLUMNS = {
    "row_id": "The raw row this conversation was made from.",
    "messages": "Turns in OpenAI's format, the answer last; tool calls as JSON text.",
    "tools": "JSON text of the tools offered, or null.",
    "extras": "JSON object of the source columns kept for evaluation.",
}
SETTLE_NO_BYTES = {"max_drop_share", "leakage_similarity", "max_leakage_share", "processes"}  # verdicts and speed


def build_chat_dataset(
    lineage: Lineage,
    format: FormatConfig,
    curation: CurationConfig,
    split: SplitConfig,
    formats_by_source: Mapping[str, FormatConfig] = MappingProxyType({}),
) -> dg.AssetsDefinition:
    """The curated conversations of a lineage; some sources may have formats of their own."""
    format = format.inlined()
    formats_by_source = {source: own.inlined() for source, own in formats_by_source.items()}
    settings = [
        format,
        dict(formats_by_source),
        curation.model_dump(mode="json", exclude=SETTLE_NO_BYTES),
        curation.named_contents(),
        split,
    ]

    @lineage.asset(
        "chat_dataset",
        stage="data",
        kinds={"duckdb", "parquet"},
        version="3",
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
    def chat_dataset(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """Conversations (OpenAI messages), filtered, de-duplicated and split into train, validation and test.

        Every raw row is either here or in `dropped.parquet`, with one counted reason and the start of what it said.
        A row's split is decided by the hash of its group and by rows before it, so appended rows never move one.
        """
        raw = store.open(context.instance, lineage.key("raw_dataset"))
        columns = pq.read_schema(raw.path / ROWS).names
        formats, prompts = resolve_templates({**formats_by_source, "": format}, tracking.prompt, columns)
        with store.staging() as staged:
            if prompts:
                write_prompt_record(staged, prompts)
            report = write_chat_dataset(
                raw.path / ROWS,
                staged,
                formats.pop(""),
                curation,
                split,
                formats_by_source=formats,
                log=context.log.info,
            )
            checks = {
                ROLES: roles_alternate(staged),
                NO_SPLIT_LEAKAGE: no_split_leakage(
                    staged, curation.leakage_similarity, curation.max_leakage_share, raw.path / ROWS, split.group_column
                ),
                DROP_SHARE: drop_share(report, curation.max_drop_share),
            }
            artifact = store.publish(context.asset_key, staged)
        metadata = {f"prompt_{prompt.name}": prompt.uri for prompt in prompts}
        return materialized(artifact, {**metadata, **_metadata(artifact.path, report)}, checks)

    return chat_dataset


def _metadata(path: Path, report: dict[str, Any]) -> dict[str, Any]:
    steps = funnel(report)
    metadata: dict[str, Any] = {
        "dagster/row_count": report["kept"],
        "dagster/column_schema": column_schema(path / "train.parquet", COLUMNS),
        "ingested_rows": report["ingested"],
        "dropped_rows": sum(report["dropped"].values()),
        **{f"{split}_rows": rows for split, rows in report["splits"].items()},
        **{f"pii_{kind}": count for kind, count in report["pii"].items()},
        "funnel": table(steps),
        "funnel_picture": picture(
            funnel_chart(
                "Rows left after each step",
                [(s["step"], s["rows_left"], s["dropped"]) for s in steps],
                report["splits"],
            ),
            "rows by step",
        ),
        "splits": table(split_sizes(report)),
        "length_picture": picture(
            histogram("Length of conversations", "characters", "rows", sampled_lengths(path / "train.parquet")),
            "rows by length",
        ),
        "sample": table(_first_conversation(path)),
    }
    if report["dropped"]:
        metadata["dropped"] = table(dropped_by_reason(path / DROPPED_ROWS, report["dropped"]))
        metadata["dropped_samples"] = table(dropped_samples(path / DROPPED_ROWS, report["dropped"]))
    if report["contaminated_by"]:
        quoted = report["contaminated_by"]
        metadata["contaminated_by"] = table([{"source": name, "rows": rows} for name, rows in quoted.items()])
    return metadata


def _first_conversation(path: Path) -> list[dict[str, Any]]:
    row = next(pq.ParquetFile(path / "train.parquet").iter_batches(1)).to_pylist()[0]
    return [{"role": spoken_as(turn), "content": turn["content"] or turn["tool_calls"]} for turn in row["messages"]]
