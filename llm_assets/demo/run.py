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

# The implicit job that `dagster asset materialize` runs has no public entry point; these names are pinned with
# dagster's exact version.
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.reconstruct import ReconstructableRepository

from llm_assets.definitions import defs
from llm_assets.defs.runtime import home
from llm_assets.demo.report import print_report
from llm_assets.interface.local_instance import MARK_TAG, OWNER_TAG, release_killed_runs
from llm_assets.interface.local_run import QUIET_CONSOLE, has_gpu, preload_for
from llm_assets.interface.pending import pending
from llm_assets.interface.progress import RunEvent

MODEL = "sql_demo"
DEFINITIONS_MODULE = "llm_assets.definitions"


def main() -> int:
    """Run what is pending; 0 when everything is materialized and green."""
    started = time.monotonic()
    with dg.DagsterInstance.get() as instance:
        for run_id in release_killed_runs(instance):
            print(f"Run {run_id[:8]} was killed; continuing from what it had finished.")
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
                told = RunEvent.from_entry(record.event_log_entry)
                if told:
                    print(f"{time.monotonic() - started:6.0f} s  {told.line()}", flush=True, file=terminal)
        if last_round:
            return
        last_round = ended.wait(timeout=1.0)


def widen_gpu_pool(instance: dg.DagsterInstance) -> None:
    """Without a GPU the pool "gpu" guards nothing: let as many of its steps run as the executor starts."""
    if not has_gpu():
        instance.event_log_storage.set_concurrency_slots("gpu", 2)


if __name__ == "__main__":
    sys.exit(main())
