"""`<model>/token_usage`: tokens, throughput and cost of every answered partition."""

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, materialized, picture, table
from llm_assets.assets.inference_partitions import partitions_of
from llm_assets.charts import bar_chart
from llm_assets.inference.config import InferenceConfig
from llm_assets.inference.usage import token_usage as usage_of
from llm_assets.resources.artifact_store import ArtifactStore

SHOWN_PARTITIONS = 30


def build_token_usage(lineage: Lineage, inference: InferenceConfig) -> dg.AssetsDefinition:
    """The token usage of a lineage."""

    @lineage.asset(
        "token_usage",
        stage="inference",
        kinds={"parquet"},
        version="1",
        settings=[inference.cost_per_hour_usd],
        deps=[dg.AssetDep(lineage.key("inference_outputs"), partition_mapping=dg.AllPartitionMapping())],
    )
    def token_usage(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """Tokens, throughput and cost of every answered partition, one row each.

        Throughput counts completion tokens over engine time; start-up is not in it.
        """
        outputs = lineage.key("inference_outputs")
        done = context.instance.get_materialized_partitions(outputs)
        ordered = [key for key in partitions_of(inference).get_partition_keys() if key in done]
        directories = {key: store.open(context.instance, outputs, key).path for key in ordered}
        usage = usage_of(directories, inference.cost_per_hour_usd)
        with store.staging() as staged:
            pq.write_table(usage, staged / "usage.parquet", compression="zstd")
            artifact = store.publish(context.asset_key, staged)
        rows = usage.to_pylist()[-SHOWN_PARTITIONS:]
        tokens = {row["partition"]: row["prompt_tokens"] + row["completion_tokens"] for row in rows}
        sums = usage.drop_columns(["partition"]).to_pandas().sum()
        metadata = {
            "dagster/row_count": usage.num_rows,
            "partitions": usage.num_rows,
            **{name: int(sums[name]) for name in ("rows", "prompt_tokens", "completion_tokens")},
            "cost_usd": float(sums["cost_usd"]),
            "tokens_per_second": float(sums["tokens_per_second"]) / max(usage.num_rows, 1),
            "usage": table(rows),
            "tokens_by_partition": picture(bar_chart("Tokens per partition", "tokens", tokens), "tokens per partition"),
        }
        return materialized(artifact, metadata)

    return token_usage
