"""Executor and resources by environment: a laptop by default, Kubernetes where `LLM_ASSETS_BACKEND=kubernetes`."""

import os
from pathlib import Path
from typing import Literal

import dagster as dg

from llm_assets.automation.sensors import build_failure_sensor, default_sensor_status
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker


def home() -> Path:
    """Everything this project writes: `LLM_ASSETS_HOME`, or `.llm_assets` where Dagster was started."""
    return Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets")).absolute()


def executor(backend: Literal["local", "kubernetes"]) -> dg.ExecutorDefinition:
    """One process per step, or one pod per step: either returns GPU memory when the step ends."""
    if backend == "local":
        start = {"forkserver": {"preload_modules": preloaded_modules()}}
        return dg.multiprocess_executor.configured({"max_concurrent": 2, "start_method": start})
    from dagster_k8s import k8s_job_executor

    return k8s_job_executor.configured(
        {
            "max_concurrent": 4,
            "enable_owner_references": True,
            "step_k8s_config": {"job_spec_config": {"ttl_seconds_after_finished": 86400}},
        }
    )


def preloaded_modules() -> list[str]:
    """What the fork server imports once per run instead of once per step: the definitions, and `LLM_ASSETS_PRELOAD`.

    That comma-separated list may name heavy packages for a long run, on a machine without a GPU only: a device that is
    initialized before a fork is lost to the steps.
    """
    named = os.environ.get("LLM_ASSETS_PRELOAD", "").split(",")
    ours = ["llm_assets.definitions", "llm_assets.components.lineage", "llm_assets.resources.fork_server"]
    return ["dagster", *ours, *filter(None, named)]


@dg.definitions
def runtime() -> dg.Definitions:
    """Resources shared by every lineage."""
    backend = "kubernetes" if os.environ.get("LLM_ASSETS_BACKEND") == "kubernetes" else "local"
    return dg.Definitions(
        executor=executor(backend),
        sensors=[
            build_failure_sensor(),
            dg.AutomationConditionSensorDefinition(
                "automation", target="*", default_status=default_sensor_status(), minimum_interval_seconds=60
            ),
        ],
        resources={
            "store": ArtifactStore(root=str(home() / "artifacts")),
            "worker": Worker(backend=backend, image=os.environ.get("LLM_ASSETS_ENGINE_IMAGE")),
            "tracking": MLflowTracking(),
            "hardware": HardwareResource(),
        },
    )
