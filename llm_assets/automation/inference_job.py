"""`<model>_run_inference`: answer the rows of any table with a registered version, started by hand or from Python.

The partitioned assets answer what arrives; this job answers what somebody asks once, with the deployment's engine.
"""

import os
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.engine.device import gpu_names
from llm_assets.inference.batch import BatchAnswers, answer_table
from llm_assets.inference.settings import InferenceRequest
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

RESULT = "result"


def op_name(model: str) -> str:
    """Name of the job's only step; ops of a code location must differ."""
    return f"{model}__answer_table"


def build_inference_job(model: str, metadata: dict[str, dg.MetadataValue]) -> dg.JobDefinition:
    """The ad-hoc inference job of a lineage; its configuration is an `InferenceRequest` as JSON."""

    @dg.op(
        name=op_name(model),
        out=dg.Out(dict, description="What was answered, and where each setting came from."),
        config_schema={"request": dg.Field(dict, description="An InferenceRequest; model_name and input_source.")},
        pool="gpu",
        tags={"model": model},
    )
    def answer(context: dg.OpExecutionContext, worker: Worker, tracking: MLflowTracking) -> dg.Output[dict[str, Any]]:
        """Answer every row of the input once, and put the answers into the output."""
        worker.require()
        request = InferenceRequest.model_validate(context.op_config["request"])
        registry = tracking.store()
        answers = answer_table(
            request,
            lambda tasks, generation, engine: worker.generate(context, tasks, generation, engine),
            home=Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets")).absolute(),
            gpus=gpu_names() if worker.backend == "local" else None,
            log=context.log.info,
            tracking_uri=registry.tracking_uri,
            registry_uri=registry.separate_registry_uri,
        )
        told = result_of(answers)
        return dg.Output(told, metadata={RESULT: dg.MetadataValue.json(told)})

    @dg.job(
        name=f"{model}_run_inference",
        description="Answers the rows of a file or table with a registered version, once per row and version.",
        metadata=metadata,
    )
    def run_inference() -> None:
        answer()

    return run_inference


def result_of(answers: BatchAnswers) -> dict[str, Any]:
    """What a call did, as JSON: what a caller elsewhere is told."""
    return {
        "model_name": answers.version.name,
        "model_version": answers.version.version,
        "answers": str(answers.answers),
        "usage": dict(answers.usage),
        "failed_rows": answers.failed_rows,
        "destination_rows": answers.destination_rows,
        "parameters": [[p.name, p.value, str(p.origin)] for p in answers.parameters],
    }
