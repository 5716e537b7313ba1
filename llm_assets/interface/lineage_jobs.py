"""A lineage that is in no `defs.yaml`, as Dagster definitions: the same component, resources and executor.

Its configuration travels as JSON text, so every step's process builds the very same job.
"""

from typing import Any

import dagster as dg

from llm_assets.components.lineage import LineageConfig, LLMLineage
from llm_assets.defs.runtime import runtime


def lineage_definitions(config: LineageConfig) -> dg.Definitions:
    """Assets, jobs and resources of one lineage."""
    return dg.Definitions.merge(dg.build_defs_for_component(LLMLineage(config)), runtime())


def build_job(lineage_json: str, job_name: str) -> dg.JobDefinition:
    """One job of a lineage; what a step's process calls to find its step.

    Args:
        lineage_json: A `LineageConfig` as JSON.
        job_name: `<model>_ingest` or `<model>_train`.
    """
    return lineage_definitions(LineageConfig.model_validate_json(lineage_json)).resolve_job_def(job_name)


def reconstructable(lineage_json: str, job_name: str) -> Any:
    """The job in the form that a run hands to the processes of its steps."""
    named = {"lineage_json": lineage_json, "job_name": job_name}
    return dg.build_reconstructable_job(__name__, "build_job", reconstructable_kwargs=named)
