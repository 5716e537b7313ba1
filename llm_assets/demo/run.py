"""Materialize the demo lineage through Dagster, show what happens, and print a one-screen report.

Only what is missing, stale or red is run, by the same staleness the UI shows. The assets run in the runs a person would
launch by hand: the model, then all inference partitions as one range, then the usage table.
"""

import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import dagster as dg

# Staleness as the UI computes it, and the implicit job that `dagster asset materialize` runs, have no public entry
# point; these names are pinned with dagster's exact version.
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.loader import LoadingContextForTest

from llm_assets.assets.conventions import unmet_checks
from llm_assets.definitions import defs
from llm_assets.defs.runtime import home
from llm_assets.demo.report import print_report

MODEL = "sql_demo"
FEW_STEPS = 4
DEFINITIONS_MODULE = "llm_assets.definitions"
MARK_TAG, OWNER_TAG = ".dagster/demo", ".dagster/demo_process"  # the prefix hides them from the runs page
QUIET_CONSOLE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def main() -> int:
    """Run what is pending; 0 when everything is materialized and green."""
    started = time.monotonic()
    with dg.DagsterInstance.get() as instance:
        release_killed_runs(instance)
        widen_gpu_pool(instance)
        ran = materialize_lineage(instance, MODEL)
        if ran is None:
            return 1
        if not ran:
            print("\nNothing changed: every asset is up to date and every blocking check is green.")
        print_report(instance, defs(), MODEL, elapsed_seconds=time.monotonic() - started)
    return 0


def materialize_lineage(instance: dg.DagsterInstance, model: str) -> list[str] | None:
    """Run the pending assets of a lineage, stage by stage.

    Returns:
        Ids of the runs it took, empty when nothing was pending; None when a run failed.
    """
    graph = defs().resolve_asset_graph()
    ours = [key for key in graph.toposorted_asset_keys if key.path[0] == model]
    inference = [key for key in ours if graph.get(key).is_partitioned]
    usage = [key for key in ours if set(graph.get(key).parent_keys) & set(inference) and key not in inference]
    model_assets = [key for key in ours if key not in (*inference, *usage)]
    runs = []
    for stage in (model_assets, inference, usage):
        selection = pending(instance, graph, stage)
        if selection:
            preload_for(selection)
            run_id, success = launch(instance, selection, partition_range(instance, graph, stage))
            if not success:
                return None
            runs.append(run_id)
    return runs


def preload_for(selection: Sequence[dg.AssetKey]) -> None:
    """Let a long run's steps share one import of the training stack; it takes longer than any of the small steps."""
    worth_it = len(selection) > FEW_STEPS and not has_gpu()
    os.environ["LLM_ASSETS_PRELOAD"] = "torch,transformers,transformers.trainer,peft,bitsandbytes" if worth_it else ""


def has_gpu() -> bool:
    """Whether the driver shows a device, told without importing torch."""
    return Path("/dev/nvidia0").exists()


def pending(instance: dg.DagsterInstance, graph: AssetGraph, stage: Sequence[dg.AssetKey]) -> list[dg.AssetKey]:
    """Assets of a stage that are missing, stale or red, and everything of the stage below those."""
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))

    def is_current(key: dg.AssetKey) -> bool:
        partitions = graph.get(key).partitions_def
        keys = partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]
        return all(resolver.get_status(key, partition) is StaleStatus.FRESH for partition in keys)

    chosen: list[dg.AssetKey] = []
    for key in stage:
        red = unmet_checks(instance, graph.get_check_keys_for_assets({key}))
        if red or not is_current(key) or set(graph.get(key).parent_keys) & set(chosen):
            chosen.append(key)
    return chosen


def partition_range(instance: dg.DagsterInstance, graph: AssetGraph, stage: Sequence[dg.AssetKey]) -> dict[str, str]:
    """Tags that run all partitions of a stage as one range; none for an unpartitioned stage."""
    partitions = graph.get(stage[0]).partitions_def
    if partitions is None:
        return {}
    keys = partitions.get_partition_keys(dynamic_partitions_store=instance)
    return {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}


def launch(instance: dg.DagsterInstance, selection: Sequence[dg.AssetKey], tags: dict[str, str]) -> tuple[str, bool]:
    """Execute one run over a selection, showing its progress; returns run id and success."""
    mark = uuid.uuid4().hex
    repository = ReconstructableRepository.for_module(DEFINITIONS_MODULE, "defs")
    with shown_progress(instance, mark), _steps_write_to(home() / "demo.log"):
        result = dg.execute_job(
            repository.get_reconstructable_job("__ASSET_JOB"),
            instance=instance,
            asset_selection=list(selection),
            run_config=QUIET_CONSOLE,
            tags={**tags, MARK_TAG: mark, OWNER_TAG: str(os.getpid())},
            raise_on_error=False,
        )
    return result.run_id, result.success


@contextmanager
def _steps_write_to(path: Path) -> Iterator[None]:
    """Send what this process and its steps print to a file, so that the terminal shows progress alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


@contextmanager
def shown_progress(instance: dg.DagsterInstance, mark: str) -> Iterator[None]:
    """Print steps, log lines, checks and failures of the run tagged `mark` while the body executes it."""
    ended = threading.Event()
    terminal = os.fdopen(os.dup(1), "w")
    printer = threading.Thread(target=_follow, args=(instance, mark, ended, terminal), daemon=True)
    printer.start()
    try:
        yield
    finally:
        ended.set()
        printer.join()
        terminal.close()


def _follow(instance: dg.DagsterInstance, mark: str, ended: threading.Event, terminal: TextIO) -> None:
    started, cursor, run_id = time.monotonic(), None, None
    last_round = False
    while True:
        if run_id is None:
            runs = instance.get_runs(filters=dg.RunsFilter(tags={MARK_TAG: mark}), limit=1)
            run_id = runs[0].run_id if runs else None
        if run_id is not None:
            connection = instance.get_records_for_run(run_id, cursor=cursor)
            cursor = connection.cursor
            for record in connection.records:
                line = describe(record.event_log_entry)
                if line:
                    print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True, file=terminal)
        if last_round:
            return
        last_round = ended.wait(timeout=1.0)


def describe(entry: dg.EventLogEntry) -> str | None:
    """One line for a person about an event, or None when it is not worth one."""
    asset = (entry.step_key or "").replace("__", "/")
    event = entry.dagster_event
    if event is None:
        blocked = entry.user_message.startswith("Dependencies for step")  # the failure itself has been shown
        return f"      {asset}: {entry.user_message}" if asset and not blocked else None
    match event.event_type_value:
        case "STEP_START":
            line = f"▶ {asset}"
        case "STEP_SUCCESS":
            line = f"✓ {asset}  ({event.step_success_data.duration_ms / 1000:.1f} s)"
        case "ASSET_CHECK_EVALUATION" if not event.asset_check_evaluation_data.passed:
            evaluation = event.asset_check_evaluation_data
            mark = "!" if evaluation.severity == dg.AssetCheckSeverity.WARN else "✗"
            line = f"{mark} {asset}: check {evaluation.check_name}: {evaluation.description}"
        case "STEP_FAILURE":
            error = event.step_failure_data.error
            cause = error.cause if error and error.cause else error
            line = f"✗ {asset} failed: {cause.message.strip() if cause else 'no reason given'}"
        case "PIPELINE_FAILURE":
            line = f"✗ run failed: {event.message}"
        case _:
            line = None
    return line


def widen_gpu_pool(instance: dg.DagsterInstance) -> None:
    """Without a GPU the pool "gpu" guards nothing: let as many of its steps run as the executor starts."""
    if not has_gpu():
        instance.event_log_storage.set_concurrency_slots("gpu", 2)


def release_killed_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs whose process is gone as failed and free their pool slots, so that this one does not wait for them."""
    unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING]
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=unfinished)):
        owner = run.tags.get(OWNER_TAG)
        if owner and not Path(f"/proc/{owner}").exists():
            print(f"Run {run.run_id[:8]} was killed; continuing from what it had finished.")
            instance.report_run_failed(run, f"The demo process {owner} that executed this run is gone.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


if __name__ == "__main__":
    sys.exit(main())
