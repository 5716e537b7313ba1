"""The process that generates text. It runs in the engine's own environment and answers every task of one job file.

It imports the standard library, pyarrow, dagster_pipes and the engine, and nothing of this package outside `workers`,
so that the two environments can pin what they like. Answers are committed in micro-batches by rename; a killed process
loses at most the answers that finished since the last commit, and the next one continues with the rows that have none.

    python -m llm_assets.workers.generate <job.json>
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from dagster_pipes import open_dagster_pipes

from llm_assets.workers.answers import TaskLedger
from llm_assets.workers.serving import Engine, Interrupted, serve

Log = Callable[[str], None]
HEARTBEAT_SECONDS = 20.0  # importing vLLM on a busy machine takes more than a minute


def main(job_path: str) -> None:
    """Answer the tasks of a job file; exits 130 when told to stop, with everything finished committed."""
    job = json.loads(Path(job_path).read_text())
    _die_with_parent(job["parent_pid"])
    launched_by_dagster = "DAGSTER_PIPES_CONTEXT" in os.environ
    with open_dagster_pipes() if launched_by_dagster else nullcontext() as pipes:
        log: Log = pipes.log.info if pipes else lambda line: print(line, flush=True)  # noqa: T201
        try:
            _answer(job, log, _stop_on_signals())
        except Interrupted as interruption:
            log(f"Stopped: {interruption}. Committed answers are kept; run again to continue.")
            sys.exit(130)


def _answer(job: dict[str, Any], log: Log, stop: Callable[[], bool]) -> None:
    engine: Engine | None = None
    starts = 0
    try:
        for task in job["tasks"]:
            ledger = TaskLedger(Path(task["output"]), Path(task["requests"]))
            waiting = ledger.unanswered()
            log(f"{task['name']}: {len(waiting)} of {ledger.requested} rows to answer.")
            if waiting and (engine is None or engine.model != task["model"]):
                if engine is not None:
                    engine.close()
                engine = _start(task, job["engine"], log)
                starts += 1
            ledger.describe_engine({**engine.report(), "engine_start": starts} if engine and waiting else {})
            if engine and waiting:
                serve(
                    task["name"],
                    engine,
                    waiting,
                    ledger,
                    generation=job["generation"],
                    micro_batch_rows=job["engine"]["micro_batch_rows"],
                    log=log,
                    stop=stop,
                )
            ledger.commit([], 0.0)
            log(f"{task['name']}: done, {ledger.report['tokens_per_second']:.0f} completion tokens/s.")
    finally:
        if engine is not None:
            engine.close()


def _start(task: dict[str, Any], config: dict[str, Any], log: Log) -> Engine:
    if task["engine"] == "vllm":
        from llm_assets.workers.vllm_engine import VllmEngine as Chosen
    else:
        from llm_assets.workers.llama_cpp_engine import LlamaCppEngine as Chosen
    plan = task["plan"]
    log(
        f"Starting {task['engine']} on {task['model']}: {plan['max_model_len']} tokens per row, "
        f"{plan['max_num_seqs']} rows at once, KV cache {plan['kv_cache_bytes'] or 'measured'} bytes."
    )
    with _heartbeat(log, f"Still starting {task['engine']}"):
        engine = Chosen(task["model"], plan, config)
    report = engine.report()
    log(
        f"{report['engine']} {report['engine_version']} ready on {report['device']} after "
        f"{report['import_seconds']:.1f} s of imports and {report['load_seconds']:.1f} s of loading."
    )
    return engine


@contextmanager
def _heartbeat(log: Log, what: str) -> Iterator[None]:
    """Log a line now and then while something blocks that reports nothing itself."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            log(f"{what} after {time.monotonic() - started:.0f} s.")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _stop_on_signals() -> Callable[[], bool]:
    """Turn SIGINT and SIGTERM into a question the serving loop asks between steps."""
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        if received:  # asked twice: do not wait for the engine
            os._exit(130)
        received.append(number)

    signal.signal(signal.SIGINT, remember)
    signal.signal(signal.SIGTERM, remember)
    return lambda: bool(received)


def _die_with_parent(parent_pid: int | None) -> None:
    if parent_pid is None:
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
