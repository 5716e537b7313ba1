"""A small deployment for the tests: a lineage's jobs with stand-in assets, and its real inference job."""

from typing import Any

import dagster as dg

from llm_assets.automation.inference_job import build_inference_job
from llm_assets.components.lineage import LineageConfig
from llm_assets.components.published import lineage_metadata
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

CONFIG = LineageConfig.model_validate(
    {
        "model": "orders",
        "sources": [{"table": "prod.sql.examples"}],
        "format": {"type": "text_to_sql"},
        "base_model": "qwen2_5_3b_instruct",
        "training": {"rank": 8},
        "registry": {"name": "prod.sql.orders"},
    }
)


def made(
    name: str, upstream: list[str], metadata: dict[str, Any], data_version: str | None = None
) -> dg.AssetsDefinition:
    @dg.asset(key=["orders", name], deps=[["orders", other] for other in upstream])
    def stand_in(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        context.log.info(f"making {name}")
        return dg.MaterializeResult(
            metadata=metadata, data_version=dg.DataVersion(data_version) if data_version else None
        )

    return stand_in


@dg.definitions
def defs() -> dg.Definitions:
    ingested = made("raw_dataset", [], {}, data_version="the same rows")
    assets = [
        ingested,
        made("lora_adapter", ["raw_dataset"], {"final_loss": 0.25, "evaluation_loss": 0.5}),
        made(
            "registered_version",
            ["lora_adapter"],
            {
                "version": 3,
                "mlflow": dg.MetadataValue.url("http://mlflow/3"),
                "mlflow_uri": "models:/prod.sql.orders/3",
            },
        ),
        made("champion", ["registered_version"], {"version": 3}),
    ]
    metadata = lineage_metadata(CONFIG)
    train = dg.define_asset_job("orders_train", [asset.key for asset in assets], metadata=metadata)
    return dg.Definitions(
        assets=assets,
        jobs=[train, dg.define_asset_job("orders_ingest", [ingested.key]), build_inference_job("orders", metadata)],
        executor=dg.in_process_executor,
        resources={"worker": Worker(), "tracking": MLflowTracking()},
    )
