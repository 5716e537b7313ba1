"""The process that runs a lineage for a call: `python -m llm_assets.interface.local_run <job file>`.

A process of its own, because steps start from a fork server: it would import a calling script again, and a notebook's
threads and device memory do not survive a fork. It ends with the caller.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from llm_assets.components.lineage import LineageConfig
from llm_assets.interface.lineage_jobs import lineage_definitions, read_lineage, reconstructable
from llm_assets.interface.local_instance import MARK_TAG, OWNER_TAG, open_instance, release_killed_runs
from llm_assets.interface.pending import pending

QUIET_CONSOLE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
TRAINING_STACK = "torch,transformers,transformers.trainer,peft,bitsandbytes"
FEW_STEPS = 4
SET_BY_CALLER = os.environ.get("LLM_ASSETS_PRELOAD")


def main(job_file: Path) -> int:
    """Make what is pending of a lineage, its sources read again first; 0 when everything is made and green.

    They are read alone where something was made of them: the same rows, from wherever, make nothing else again.
    """
    end_with_parent()
    job = json.loads(job_file.read_text())
    config = read_lineage(job_file)
    tags = {MARK_TAG: job["mark"], OWNER_TAG: str(os.getpid())}
    with open_instance() as instance:
        release_killed_runs(instance)
        to_make = _pending(instance, config)
        raw, below = (dg.AssetKey([config.model, name]) for name in ("raw_dataset", "chat_dataset"))
        if raw not in to_make or instance.get_latest_materialization_event(below):
            if not _execute(instance, job_file, f"{config.model}_ingest", [raw], tags):
                return 1
            to_make = _pending(instance, config)
        if not to_make:
            return 0
        preload_for(to_make)
        return 0 if _execute(instance, job_file, f"{config.model}_train", to_make, tags) else 1


def end_with_parent() -> None:
    """End this process when the notebook or script that started it is killed."""
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def preload_for(selection: Sequence[dg.AssetKey]) -> None:
    """Let a long run's steps share one import of the training stack; it takes longer than any of the small steps.

    A value that the caller has set stays.
    """
    worth_it = len(selection) > FEW_STEPS and not has_gpu()
    chosen = TRAINING_STACK if worth_it else ""
    os.environ["LLM_ASSETS_PRELOAD"] = chosen if SET_BY_CALLER is None else SET_BY_CALLER


def has_gpu() -> bool:
    """Whether the driver shows a device, told without importing torch."""
    return Path("/dev/nvidia0").exists()


def _pending(instance: dg.DagsterInstance, config: LineageConfig) -> list[dg.AssetKey]:
    definitions = lineage_definitions(config)
    trained = definitions.resolve_job_def(f"{config.model}_train").asset_layer.selected_asset_keys
    graph = definitions.resolve_asset_graph()
    return pending(instance, graph, [key for key in graph.toposorted_asset_keys if key in trained])


def _execute(
    instance: dg.DagsterInstance, job_file: Path, job_name: str, assets: Sequence[dg.AssetKey], tags: dict[str, str]
) -> bool:
    done = dg.execute_job(
        reconstructable(job_file, job_name),
        instance=instance,
        asset_selection=list(assets),
        run_config=QUIET_CONSOLE,
        tags=tags,
        raise_on_error=False,
    )
    return done.success


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
