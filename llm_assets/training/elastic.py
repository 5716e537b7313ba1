"""Train on several devices, or processes of a CPU, from the one step that publishes: torch's elastic agent in it.

An optimiser step holds the same packs however many processes share them, so the loss curve is that of one process up to
rounding. A process that dies ends the others; nothing is restarted in place, since the checkpoint is the place to
continue from and the orchestrator is what retries. Out of memory is the exception: all start again by themselves, from
the last checkpoint under the next smaller plan.

Where a run spans several machines, `python -m llm_assets.training.elastic JOB.json` joins from the others; the first
writes that file into the work directory, which they share.
"""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training import checkpoints
from llm_assets.training.forking import gpus, process_context
from llm_assets.training.optimizer_step import PlanTooLarge
from llm_assets.training.rank_process import LOGS, ElasticJob, error_file, run_rank
from llm_assets.training.rendezvous import Rendezvous, rendezvous
from llm_assets.training.step_listener import Listener, Report
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid
from llm_assets.training.training_report import TrainingReport

JOB = "elastic_job.json"
LAST_LINES, MEETING_SECONDS = 15, 900
AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class RankDied(LLMAssetsError):
    """One of the processes that train together ended before its time, and the others with it."""


class RankKilled(RankDied):
    """It was killed; where nobody did, the system ran out of memory."""


def train(
    base: Path,
    dataset: Path,
    out: Path,
    work: Path,
    config: TrainingConfig,
    *,
    log: Callable[[str], None],
    on_evaluation: Callable[[int, float], None] | None = None,
    report: Report | None = None,
) -> TrainingReport:
    """`train_adapter` on as many processes as `config.processes` and the environment's machines ask for.

    Arguments and errors are those of `train_adapter`; with several machines all directories are on a shared disk.

    Raises:
        TrainingConfigInvalid: the packs of a step cannot be shared evenly, or there are fewer devices.
        RankDied: a process was killed or crashed; carries its last lines.
        PlanTooLarge: a step of a run on several machines did not fit; run again, it continues under a smaller plan.
    """
    place = rendezvous()
    count = processes_here(config)
    if count * place.nodes == 1:
        return train_adapter(base, dataset, out, work, config, log=log, on_evaluation=on_evaluation, report=report)
    require_even_shares(config, count * place.nodes)
    job = ElasticJob(base, dataset, out, work, config)
    work.mkdir(parents=True, exist_ok=True)
    written = {**vars(job), "config": config.model_dump(mode="json")}
    checkpoints.write_whole(work / JOB, json.loads(json.dumps(written, default=str)))
    for stale in (work / LOGS).glob("error-*.json"):
        stale.unlink()
    log(f"training on {count} processes" + (f" on each of {place.nodes} machines" if place.nodes > 1 else ""))
    while True:
        listener = Listener(log, on_evaluation, report)
        try:
            return listener.hear_while(partial(_launch, job, place, count, listener.theirs))[0]
        except PlanTooLarge as outgrown:
            if place.nodes > 1:  # the other machines have ended with this one, and their steps are retried with it
                raise
            log(f"{outgrown}, from the last checkpoint")
            place = rendezvous()


def processes_here(config: TrainingConfig) -> int:
    """Processes on this machine: the configured number, or one per GPU.

    Raises:
        TrainingConfigInvalid: there are GPUs, and fewer than that.
    """
    devices = len(gpus())
    count = max(1, devices) if config.processes == "auto" else config.processes
    if devices and count > devices:
        raise TrainingConfigInvalid(
            f"training.processes is {count}, and this machine shows {devices} GPUs. Set it to {devices} or auto."
        )
    return count


def require_even_shares(config: TrainingConfig, processes: int) -> None:
    """Refuse a step whose packs do not divide among the processes.

    Raises:
        TrainingConfigInvalid: with the nearest number of packs that does.
    """
    packs = config.packs_per_step
    if packs % processes:
        nearest = -(-packs // processes) * processes
        raise TrainingConfigInvalid(
            f"{processes} processes cannot share the {packs} packs of an optimiser step (training.batch_packs x "
            f"accumulation_steps) evenly. Make it {nearest}, or set training.processes to a divisor of {packs}."
        )


def _launch(job: ElasticJob, place: Rendezvous, count: int, speaker: Connection | None) -> dict[int, TrainingReport]:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = job.work / LOGS / str(place.node_rank)
    settings = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=count,
        run_id=place.identity,
        rdzv_backend="static",
        rdzv_endpoint=place.identity,
        rdzv_configs={"rank": place.node_rank, "timeout": MEETING_SECONDS},
        max_restarts=0,
        start_method=process_context().get_start_method(),
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
        local_addr=place.address if place.nodes == 1 else None,
    )
    try:
        with _own_signal_handlers():
            return elastic_launch(settings, run_rank)(job, count, speaker)
    except ChildFailedError as error:
        raise _explained(job.work, logs, error) from None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Give this process its signal handlers back after the block; the agent leaves its own behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(work: Path, logs: Path, error: Any) -> LLMAssetsError:
    """The error of the process that failed first, as its own class where it is one of the project's."""
    rank, failure = error.get_first_failure()
    told = min((work / LOGS).glob("error-*.json"), key=lambda path: path != error_file(work, rank), default=None)
    if told:
        found = json.loads(told.read_text())
        for path in (work / LOGS).glob("error-*.json"):
            path.unlink()
        return _known_errors().get(found["type"], RankDied)(found["text"])
    how = f"killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exit status {failure.exitcode}"
    written = sorted(logs.glob(f"*/attempt_0/{failure.local_rank}/std*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line for path in written[-2:] for line in path.read_text(errors="replace").splitlines() if line.strip()]
    last = "\n".join(lines[-LAST_LINES:]) or "(it had said nothing)"
    return (RankKilled if failure.exitcode < 0 else RankDied)(
        f"Process {rank} of the run ended: {how}. The others were stopped; run the step again to continue after the "
        f"last checkpoint. Its last lines:\n{last}"
    )


def _known_errors() -> dict[str, type[LLMAssetsError]]:
    pending, known = [LLMAssetsError], {}
    while pending:
        found = pending.pop()
        known[found.__name__] = found
        pending += found.__subclasses__()
    return known


def join_from(job_file: Path) -> None:
    """Run this machine's processes of a run whose first machine writes the job file, once it is there.

    Raises:
        RankDied: the file did not appear in time.
    """
    deadline = time.monotonic() + MEETING_SECONDS
    while not job_file.exists():
        if time.monotonic() > deadline:
            raise RankDied(
                f"{job_file} did not appear within {MEETING_SECONDS} s: the first machine's step has not begun, or its "
                "work directory is not on a disk that this machine shares."
            )
        time.sleep(0.5)
    written = json.loads(job_file.read_text())
    paths = {name: Path(written[name]) for name in ("base", "dataset", "out", "work")}
    job = ElasticJob(config=TrainingConfig.model_validate(written["config"]), **paths)
    _launch(job, rendezvous(), processes_here(job.config), None)


if __name__ == "__main__":
    join_from(Path(sys.argv[1]))
