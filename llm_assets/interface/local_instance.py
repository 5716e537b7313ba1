"""The Dagster instance a call runs on: the one of `DAGSTER_HOME`, else one in `LLM_ASSETS_HOME` that `make dev` shows.

A real instance rather than an ephemeral one, so that runs are seen in the UI, checks of earlier runs gate later ones
and a killed call is continued.
"""

import os
from pathlib import Path

import dagster as dg
import yaml

from llm_assets.core import LLMAssetsError
from llm_assets.defs.runtime import home

OWNER_TAG, MARK_TAG = ".dagster/llm_assets_process", ".dagster/llm_assets_call"  # the prefix hides them from the UI


class DagsterHomeInvalid(LLMAssetsError):
    """`DAGSTER_HOME` names no directory."""


def open_instance() -> dg.DagsterInstance:
    """The instance to run on.

    Raises:
        DagsterHomeInvalid: `DAGSTER_HOME` is set to something that is no absolute directory.
    """
    configured = os.environ.get("DAGSTER_HOME")
    if not configured:
        return dg.DagsterInstance.from_config(str(own_dagster_home()))
    if not Path(configured).is_absolute() or not Path(configured).is_dir():
        raise DagsterHomeInvalid(
            f"DAGSTER_HOME is {configured}, which is no absolute path of a directory. Create it, or unset the variable "
            f"to use {home() / 'dagster_home'}."
        )
    return dg.DagsterInstance.get()


def own_dagster_home() -> Path:
    """A Dagster home with the settings of the project's `dagster.yaml` and its storage in `LLM_ASSETS_HOME`."""
    directory = home() / "dagster_home"
    storage = str(home() / "dagster")
    settings = {
        "storage": {"sqlite": {"base_dir": storage}},
        "local_artifact_storage": _class("dagster._core.storage.root", "LocalArtifactStorage", storage),
        "compute_logs": _class(
            "dagster._core.storage.local_compute_log_manager", "LocalComputeLogManager", f"{storage}/compute_logs"
        ),
        "concurrency": {"pools": {"default_limit": 1, "granularity": "op"}},
        "telemetry": {"enabled": False},
    }
    text = yaml.safe_dump(settings)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "dagster.yaml"
    if not file.exists() or file.read_text() != text:
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        unfinished.write_text(text)
        unfinished.replace(file)
    return directory


def release_killed_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process is gone as failed and free their pool slots, so that the next run does not wait for them.

    Returns:
        Ids of the runs it released.
    """
    unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]
    released = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=unfinished)):
        owner = run.tags.get(OWNER_TAG)
        if owner and not Path(f"/proc/{owner}").exists():
            instance.report_run_failed(run, f"The process {owner} that executed this run is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            released.append(run.run_id)
    return released


def _class(module: str, name: str, base_dir: str) -> dict[str, object]:
    return {"module": module, "class": name, "config": {"base_dir": base_dir}}
