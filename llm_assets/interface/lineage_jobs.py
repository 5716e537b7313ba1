"""A lineage that is in no `defs.yaml`, as Dagster definitions: the same component, resources and executor.

Its configuration travels as the path of a file that only its owner may read, so every step's process builds the very
same job; the text itself may hold a database's password, and Dagster keeps what it is told about a job's origin.
"""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.components.lineage import LineageConfig, LLMLineage
from llm_assets.defs.runtime import runtime


def lineage_definitions(config: LineageConfig) -> dg.Definitions:
    """Assets, jobs and resources of one lineage."""
    return dg.Definitions.merge(dg.build_defs_for_component(LLMLineage(config)), runtime())


def read_lineage(job_file: Path) -> LineageConfig:
    """The lineage that a job file names under `lineage`, as JSON text."""
    return LineageConfig.model_validate_json(json.loads(job_file.read_text())["lineage"])


def build_job(job_file: str, job_name: str) -> dg.JobDefinition:
    """One job of a lineage; what a step's process calls to find its step.

    Args:
        job_file: As `read_lineage` reads it; it stays until the run's end.
        job_name: `<model>_ingest` or `<model>_train`.
    """
    return lineage_definitions(read_lineage(Path(job_file))).resolve_job_def(job_name)


def reconstructable(job_file: Path, job_name: str) -> Any:
    """The job in the form that a run hands to the processes of its steps."""
    named = {"job_file": str(job_file), "job_name": job_name}
    return dg.build_reconstructable_job(__name__, "build_job", reconstructable_kwargs=named)
