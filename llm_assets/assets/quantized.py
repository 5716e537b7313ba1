"""Quantized variants: one asset per entry of the YAML list, refused before work where its target has no kernel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from llm_assets.assets.conventions import Lineage, materialized, table
from llm_assets.core import CheckResult
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests
from llm_assets.quantization.calibration import held_out_rows, prompts
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.forward import answer_with_transformers
from llm_assets.quantization.hardware import HardwareConfig
from llm_assets.quantization.loading import loads
from llm_assets.quantization.quantize import quantize
from llm_assets.quantization.recovery import measured_recovery
from llm_assets.quantization.support import Placement, placement, refuse_unsupported
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.worker import Worker

LOADS = "loads"
RECOVERY = "recovery"


def build_quantized(lineage: Lineage, config: QuantizationConfig, target: HardwareConfig) -> dg.AssetsDefinition:
    """The asset `<model>/quantized/<name>` of one variant."""
    kinds = {"pytorch", "huggingface"} if config.engine == "vllm" else {"pytorch", "gguf"}
    path = ("quantized", config.asset_name)
    checks = {
        LOADS: "The engine that will run the variant opens it and answers held-out prompts.",
        RECOVERY: f"The variant keeps {config.recovery_floor:.1%} of the merged model's next-token accuracy.",
    }

    @lineage.asset(
        *path,
        stage="quantization",
        kinds=kinds,
        version="1",
        settings=[config],
        deps=[lineage.key("merged_model"), lineage.key("tokenized_dataset")],
        check_specs=lineage.blocking_checks(*path, names=checks),
        pool="gpu",
    )
    def quantized(
        context: dg.AssetExecutionContext, store: ArtifactStore, worker: Worker, hardware: HardwareResource
    ) -> dg.MaterializeResult:
        """A smaller copy of the merged model in one number format.

        Calibrated on training rows alone, then held against the merged model on held-out rows: how many next tokens it
        still gets right, and whether its engine opens it and answers.
        """
        refuse_unsupported(config, hardware.target_of(target))
        engine_device = hardware.target_of(target) if worker.backend == "kubernetes" else hardware.here()
        verdict = placement(config, engine_device)
        if verdict.where is Placement.RUNS_HERE:
            worker.require()
        merged = store.open(context.instance, lineage.key("merged_model")).path
        tokenized = store.open(context.instance, lineage.key("tokenized_dataset")).path
        with store.staging() as staged:
            summary = quantize(merged, tokenized, staged, config, context.log.info)
            variant = store.publish(context.asset_key, staged)
        held_out = held_out_rows(tokenized, config.recovery_rows, config.seed)
        kept = measured_recovery(merged, variant.path, held_out, config, context.log.info)
        requests = prompts(held_out, config.load_prompts)
        if verdict.where is Placement.RUNS_HERE:
            with store.staging() as scratch:  # on the store's file system, which an engine pod mounts
                task = _task(config, variant.path, requests, scratch)
                worker.generate(context, [task], GenerationConfig(max_new_tokens=config.load_tokens), EngineConfig())
                answers, engine = read_answers(task.output), config.engine
        else:
            answers, engine = answer_with_transformers(variant.path, requests, config.load_tokens), "transformers"
        expected = answer_with_transformers(merged, requests, config.load_tokens)
        opened = loads(expected, answers, engine, unproven=verdict.reason)
        return materialized(variant, _metadata(summary, opened, kept), checks={LOADS: opened, RECOVERY: kept})

    return quantized


def _task(config: QuantizationConfig, variant: Path, requests: pa.Table, scratch: Path) -> GenerationTask:
    task = GenerationTask(config.asset_name, variant, config.engine, scratch / "requests.parquet", scratch / "answers")
    write_requests(task.requests, requests["row_id"].to_pylist(), requests["prompt_token_ids"].to_pylist())
    return task


def _metadata(summary: Mapping[str, Any], opened: CheckResult, kept: CheckResult) -> dict[str, Any]:
    plotted = ("recovery", "recovery_low", "recovery_high", "loss_delta", "perplexity_ratio", "agreement")
    return {
        "scheme": summary["scheme"],
        "engine": summary["engine"],
        "weight_bytes": int(summary["bytes"]),
        "compression_ratio": float(summary["merged_bytes"] / summary["bytes"]),
        "calibration_rows": len(summary["calibration_row_ids"]),
        "opened_with": str(opened.numbers["opened_with"]),
        **{name: kept.numbers[name] for name in plotted if name in kept.numbers},
        "answers": table(opened.rows),
    }
