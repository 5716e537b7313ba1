"""Run a lineage on this machine's Dagster and follow it: a real run, with the same steps, checks and artifacts.

The run has its own process, so a notebook keeps its memory and an interrupt ends the run like the UI's Terminate does.
Calling again continues: assets that are made and green are not made again, and training goes on from its checkpoint.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.components.lineage import LineageConfig
from llm_assets.core import LLMAssetsError
from llm_assets.defs.runtime import home
from llm_assets.interface.local_instance import MARK_TAG, open_instance
from llm_assets.interface.progress import FailureNote, Log, RunEvent
from llm_assets.resources.worker import FLUSH_SECONDS

POLL_SECONDS = 0.5
INTERRUPT_SECONDS = FLUSH_SECONDS + 60.0  # the engine's worker commits what it has first
OUTPUT_TAIL_BYTES = 2000


class LocalRunFailed(LLMAssetsError):
    """A step or check failed, or the process of the run died; names the step and the reason."""


@dataclass
class LocalRun:
    """What a call's runs left behind.

    Attributes:
        run_ids: Dagster's ids, in order; the first may have read the sources only.
        assets: Metadata of the lineage's current artifacts, by key with slashes.
    """

    run_ids: list[str] = field(default_factory=list)
    assets: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_lineage(config: LineageConfig, log: Log) -> LocalRun:
    """Make whatever is missing, stale or red of a lineage, up to the champion.

    Args:
        config: The lineage.
        log: Receives progress lines.

    Raises:
        LocalRunFailed: names the step and the reason.
        DagsterHomeInvalid: `DAGSTER_HOME` names no directory.
    """
    folder = home() / "interface" / config.model
    folder.mkdir(parents=True, exist_ok=True)
    mark, output = uuid.uuid4().hex, folder / "output.log"
    job = folder / f"job-{mark}.json"
    job.touch(mode=0o600)  # a source's URI may hold a password
    job.write_text(json.dumps({"lineage": config.model_dump_json(exclude_unset=True), "mark": mark}))
    run, note = LocalRun(), FailureNote()
    log(f"{config.model}: starting; what its steps print goes to {output}")
    try:
        with open_instance() as instance:
            with _process(job, output) as process:
                for event in _followed(instance, mark, process, run):
                    note.notice(event)
                    log(event.line())
            if process.returncode != 0:
                raise LocalRunFailed(_explained(config, run, note, output))
            run.assets = _current(instance, config.model)
    finally:
        job.unlink(missing_ok=True)
    return run


@contextmanager
def _process(job: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The run's process; an interrupt of the caller is passed on, and its end waited for.

    A second interrupt, or the end of that patience, kills it with every step it started.
    """
    command = [sys.executable, "-W", "ignore", "-m", "llm_assets.interface.local_run", str(job)]
    environment = {**os.environ, "LLM_ASSETS_HOME": str(home())}
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(INTERRUPT_SECONDS)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _followed(
    instance: dg.DagsterInstance, mark: str, process: subprocess.Popen[bytes], run: LocalRun
) -> Iterator[RunEvent]:
    """Events worth a line of all runs of a call, until its process has ended."""
    cursors: dict[str, str | None] = {}
    ended = False
    while not ended:
        ended = process.poll() is not None
        found = instance.get_runs(filters=dg.RunsFilter(tags={MARK_TAG: mark}), ascending=True)
        run.run_ids = [entry.run_id for entry in found]
        for run_id in run.run_ids:
            page = instance.get_records_for_run(run_id, cursor=cursors.get(run_id))
            cursors[run_id] = page.cursor
            told = (RunEvent.from_entry(record.event_log_entry) for record in page.records)
            yield from (event for event in told if event)
        if not ended:
            time.sleep(POLL_SECONDS)


def _current(instance: dg.DagsterInstance, model: str) -> dict[str, dict[str, Any]]:
    """Metadata of every current materialization of a lineage, as plain values."""
    found = {}
    for key in instance.get_asset_keys(prefix=[model]):
        event = instance.get_latest_materialization_event(key)
        if event is not None and event.asset_materialization is not None:
            entries = event.asset_materialization.metadata
            found[key.to_user_string()] = {
                label: entry.value for label, entry in entries.items() if isinstance(entry.value, (str, int, float))
            }
    return found


def _explained(config: LineageConfig, run: LocalRun, note: FailureNote, output: Path) -> str:
    if note.failures:
        where = f"Run {run.run_ids[-1]} is in the Dagster UI (`make dev`)."
        return f"{config.model}: {note.reason()}\nFix it and call again: what was made is kept. {where}"
    tail = output.read_bytes()[-OUTPUT_TAIL_BYTES:].decode(errors="replace").strip()
    return f"{config.model}: the process of the run died before it could tell why. Its last lines ({output}):\n{tail}"
