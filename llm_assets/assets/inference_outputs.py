"""`<model>/inference_outputs`: one answer per input row, by the champion, through one engine for a run's partitions."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, picture, plain, table, unmet_checks
from llm_assets.assets.inference_partitions import partitioning, published
from llm_assets.charts import histogram
from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.data.ingestion import ROWS
from llm_assets.data.rendering import Renderer
from llm_assets.engine.tasks import GenerationTask, engine_for
from llm_assets.inference.checks import complete, empty_share, error_share, length_capped_share, token_stats
from llm_assets.inference.config import InferenceConfig
from llm_assets.inference.outputs import ModelInUse, PreparedPartition, finish_partition, prepare_partition
from llm_assets.registry.versions import RegisteredVersion, load_version
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore, digest
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

COMPLETE, ERROR_SHARE, EMPTY_SHARE = "complete", "error_share", "empty_share"
LENGTH_CAPPED_SHARE, TOKEN_STATS = "length_capped_share", "token_stats"


class InferenceRefused(LLMAssetsError):
    """Something inference consumes did not pass its checks."""


def build_inference_outputs(
    lineage: Lineage, inference: InferenceConfig, registry_name: str, gate: Sequence[dg.AssetCheckKey]
) -> dg.AssetsDefinition:
    """The inference outputs of a lineage; `gate` are the checks that must be green in whatever run they last ran."""

    @lineage.asset(
        "inference_outputs",
        stage="inference",
        kinds={"parquet", "mlflow"},
        version="1",
        settings=[inference.variant, inference.generation],
        **partitioning(inference),
        deps=[lineage.key("inference_inputs"), lineage.key("champion")],
        pool="gpu",
        check_specs=lineage.blocking_checks(
            "inference_outputs",
            names={
                COMPLETE: "Every row that came in came out once.",
                ERROR_SHARE: "Few enough rows failed.",
                EMPTY_SHARE: "Few enough answers are empty.",
                LENGTH_CAPPED_SHARE: "Few enough answers were cut off before their end.",
                TOKEN_STATS: "Prompts are no longer than those the model was trained on.",
            },
        ),
    )
    def inference_outputs(
        context: dg.AssetExecutionContext, store: ArtifactStore, worker: Worker, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """One answer per input row, by the registered champion.

        All partitions of a run share one engine. Answers are kept as they come, so a killed run continues where it
        stopped; a row is asked again only if its prompt, the model or the sampling changed. Every row names the model
        version that answered it. A row that failed says why in `error`.
        """
        worker.require()
        if red := unmet_checks(context.instance, gate):
            raise InferenceRefused(f"Not passed: {', '.join(red)}. Fix what they report and materialize those assets.")
        version = _champion(context, store, lineage, registry_name, tracking)
        model_directory = version.variant_directory(inference.variant)
        model = ModelInUse(
            version.name,
            version.version,
            version.model_id,
            inference.variant,
            inference.generation.over(version.generation),
        )
        renderer = Renderer.from_directory(model_directory)
        tasks, prepared, artifacts, metadata, tables = [], {}, {}, {}, {}
        with ExitStack() as workspaces:
            for partition in context.partition_keys:
                inputs = store.open(context.instance, lineage.key("inference_inputs"), partition)
                inputs_digest = digest({"inputs": inputs.fingerprint, "model": plain(model.as_json())})
                work = workspaces.enter_context(store.workspace(context.asset_key, inputs_digest, partition))
                requests = work / "requests.parquet"
                previous = _previous(context, store, partition)
                ready = prepare_partition(partition, inputs.path, renderer, model, previous=previous, requests=requests)
                prepared[partition] = (ready, work / "answers")
                engine = engine_for(model_directory)
                if ready.to_answer:
                    tasks.append(GenerationTask(partition, model_directory, engine, requests, work / "answers"))
            worker.generate(context, tasks, model.generation, inference.engine)
            for partition, (ready, answers) in prepared.items():
                with store.staging() as staged:
                    usage = finish_partition(ready, model, answers, staged)
                    artifacts[partition] = store.publish(context.asset_key, staged, partition=partition)
                tables[partition] = pq.read_table(artifacts[partition].path / ROWS)
                metadata[partition] = {
                    "dagster/partition_row_count": usage["rows"],
                    "model": f"{model.name}/{model.version} ({model.variant})",
                    **usage,
                    **_shown(tables[partition]),
                }
        checks = _checks({name: ready for name, (ready, _) in prepared.items()}, tables, inference, version)
        return published(context, artifacts, metadata, checks)

    return inference_outputs


def _champion(
    context: dg.AssetExecutionContext, store: ArtifactStore, lineage: Lineage, name: str, tracking: MLflowTracking
) -> RegisteredVersion:
    champion = store.open(context.instance, lineage.key("champion"))
    promoted = json.loads((champion.path / "champion.json").read_text())
    mlflow = tracking.store()
    version = load_version(name, str(promoted["version"]), mlflow.tracking_uri, mlflow.separate_registry_uri)
    version.require_promoted()  # its own evidence: what a challenger fails does not stop the version in use
    return version


def _previous(context: dg.AssetExecutionContext, store: ArtifactStore, partition: str) -> Path | None:
    """The partition's current answers, if it has any."""
    try:
        return store.open(context.instance, context.asset_key, partition).path
    except ArtifactMissing:
        return None


def _checks(
    prepared: dict[str, PreparedPartition],
    tables: dict[str, pa.Table],
    inference: InferenceConfig,
    version: RegisteredVersion,
) -> dict[str, CheckResult]:
    came_in = {name: pq.read_table(ready.inputs, columns=["row_id"])[0].to_pylist() for name, ready in prepared.items()}
    came_out = {name: rows["row_id"].to_pylist() for name, rows in tables.items()}
    trained = version.metadata.get("lengths", {}).get("prompt", {}).get("p100")
    return {
        COMPLETE: complete(came_in, came_out),
        ERROR_SHARE: error_share(tables, inference.max_error_share),
        EMPTY_SHARE: empty_share(tables, inference.max_empty_share),
        LENGTH_CAPPED_SHARE: length_capped_share(tables, inference.max_length_capped_share),
        TOKEN_STATS: token_stats(tables, trained),
    }


def _shown(rows: pa.Table) -> dict[str, dg.MetadataValue]:
    lengths = rows["completion_tokens"].to_pylist()
    chart = histogram("Length of the answers", "completion tokens", "rows", lengths)
    sample = rows.select(["row_id", "completion", "finish_reason", "completion_tokens"]).slice(0, 5).to_pylist()
    shortened = [{**row, "completion": row["completion"][:200]} for row in sample]
    return {"completion_lengths": picture(chart, "histogram of completion tokens"), "sample": table(shortened)}
