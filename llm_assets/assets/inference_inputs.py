"""`<model>/inference_inputs`: the rows to answer, one partition per input file."""

import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, table
from llm_assets.assets.inference_partitions import partitioning, published
from llm_assets.data import FormatConfig
from llm_assets.data.formats import TemplateFormat, TemplateUnavailable
from llm_assets.inference.checks import freshness, schema
from llm_assets.inference.config import DailyPartitions, InferenceConfig
from llm_assets.inference.inputs import ROWS, read_partition
from llm_assets.registry.prompts import parse_prompt_uri, read_prompt_record
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore

SCHEMA, FRESHNESS = "schema", "freshness"


def build_inference_inputs(lineage: Lineage, inference: InferenceConfig, format: FormatConfig) -> dg.AssetsDefinition:
    """The inference inputs of a lineage."""
    format = format.inlined()

    @lineage.asset(
        "inference_inputs",
        stage="inference",
        kinds={"duckdb", "parquet"},
        version="1",
        settings=[inference.inputs, format],
        **partitioning(inference),
        deps=[lineage.key("champion")] if _asks_by_registered_prompt(format) else [],
        check_specs=lineage.blocking_checks(
            "inference_inputs",
            names={
                SCHEMA: "Every partition has the columns the format asks from, unique row ids and a question per row.",
                FRESHNESS: "The files of the partitions that are due were written recently enough.",
            },
        ),
    )
    def inference_inputs(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """The rows to answer, one partition per input file.

        Every row carries `row_id` (a hash of its own values) and `messages`, the conversation it asks. A row that
        cannot be asked stays in, with the reason in `refused`.
        """
        artifacts, metadata, tables, written = {}, {}, {}, {}
        trained = _as_trained(context, store, lineage, format)
        for partition in context.partition_keys:
            with store.staging() as staged:
                report = read_partition(partition, inference, trained, staged, context.log.info)
                artifacts[partition] = store.publish(context.asset_key, staged, partition=partition)
            columns = [*trained.prompt_columns, "row_id", "refused"]
            tables[partition] = pq.read_table(artifacts[partition].path / ROWS, columns=list(dict.fromkeys(columns)))
            written[partition] = report.newest_file_time
            metadata[partition] = {
                "dagster/partition_row_count": report.rows,
                "rows": report.rows,
                "refused_rows": report.refused,
                "file_age_hours": (time.time() - report.newest_file_time) / 3600,
                "sample": table(_first_questions(artifacts[partition].path / ROWS)),
            }
        due = _due(context, inference, written)
        checks = {
            SCHEMA: schema(tables, trained.prompt_columns, inference.max_error_share),
            FRESHNESS: freshness(due, inference.freshness_hours, datetime.now(UTC)),
        }
        return published(context, artifacts, metadata, checks)

    return inference_inputs


def _as_trained(
    context: dg.AssetExecutionContext, store: ArtifactStore, lineage: Lineage, format: FormatConfig
) -> FormatConfig:
    """The format, a prompt of the registry in the version the champion was trained with.

    Before there is a champion, in that the conversations were written with.
    """
    if not _asks_by_registered_prompt(format):
        return format
    prompts = {}
    for asset in ("chat_dataset", "champion"):
        with suppress(ArtifactMissing):
            opened = store.open(context.instance, lineage.key(asset))
            prompts |= {prompt.name: prompt for prompt in read_prompt_record(opened.path)}
    name = parse_prompt_uri(str(format.template_uri))[0]
    if name not in prompts:
        raise TemplateUnavailable(
            f"{format.template_uri}: chat_dataset was made without it. Materialize chat_dataset and what follows again."
        )
    return format.resolved(prompts[name].template)


def _asks_by_registered_prompt(format: FormatConfig) -> TypeGuard[TemplateFormat]:
    return isinstance(format, TemplateFormat) and format.template_uri is not None


def _first_questions(path: Path) -> list[dict[str, str]]:
    """What the first rows ask, or why they cannot."""
    head = next(pq.ParquetFile(path).iter_batches(3, columns=["row_id", "messages", "refused"])).to_pylist()
    asks = [row["messages"][-1]["content"] if row["messages"] else row["refused"] for row in head]
    return [{"row_id": row["row_id"], "asks": (text or "")[:300]} for row, text in zip(head, asks, strict=True)]


def _due(context: dg.AssetExecutionContext, inference: InferenceConfig, written: dict[str, float]) -> dict[str, float]:
    """Partitions whose age matters: all fixed ones; of days only the latest, because past days are old by nature."""
    if not isinstance(inference.partitions, DailyPartitions):
        return written
    latest = context.assets_def.partitions_def.get_last_partition_key() if context.assets_def.partitions_def else None
    return {partition: seconds for partition, seconds in written.items() if partition == latest}
