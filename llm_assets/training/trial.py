"""One trial of a study in a process of its own, so that memory returns to the system whatever happens in it.

A trial that runs out of memory, diverges or drew what cannot be trained is an outcome, no crash. It asks the study at
every evaluation whether to go on, over a pipe: one thread can look after any number of trials.
"""

import multiprocessing.connection
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from llm_assets.core import LLMAssetsError
from llm_assets.training import elastic
from llm_assets.training.forking import end_with_parent, gpus, process_context
from llm_assets.training.memory_plan import MemoryTooSmall
from llm_assets.training.optimizer_step import TrainingOutOfMemory
from llm_assets.training.search_space import StudyConfigInvalid
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid
from llm_assets.training.watch import TrainingDiverged


class TrialCrashed(LLMAssetsError):
    """A trial ended by an error that another choice of parameters would not avoid."""


class _Pruned(Exception):
    """Raised in a trial's process when the study has cut it short."""


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended: its evaluation loss when complete, otherwise why not."""

    state: Literal["complete", "pruned", "failed"]
    evaluation_loss: float | None
    reason: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class TrialJob:
    """What a trial trains.

    Attributes:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        work: The trial's own directory; give it again to continue a killed trial.
        config: The trial's settings.
        is_searched: Whether the study chose the parameters. Those of the configuration itself are a user's to repair:
            settings among them that cannot be trained end the study.
    """

    base: Path
    dataset: Path
    work: Path
    config: TrainingConfig
    is_searched: bool = True


@dataclass(frozen=True)
class Slot:
    """Where a trial runs: devices as `CUDA_VISIBLE_DEVICES` takes them, None for all; CPU threads, None as found."""

    devices: str | None = None
    threads: int | None = None


class RunningTrial:
    """A trial's process, from its start to its outcome.

    Args:
        job: What to train.
        slot: Where.
        log: Receives the trial's progress lines.
        should_prune: Called with step and evaluation loss; True cuts the trial short.
    """

    def __init__(
        self,
        job: TrialJob,
        slot: Slot,
        *,
        log: Callable[[str], None],
        should_prune: Callable[[int, float], bool],
    ) -> None:
        context = process_context()
        self.connection, theirs = context.Pipe()
        self.slot, self.began = slot, time.monotonic()
        self._log, self._should_prune = log, should_prune
        self._process = context.Process(target=_trial, args=(theirs, job, slot))  # type: ignore[union-attr]
        self._process.start()
        theirs.close()

    def hear(self) -> TrialOutcome | None:
        """Answer the trial's next message; its outcome when that was the last one.

        Raises:
            TrialCrashed: the trial raised anything that other parameters would not avoid.
        """
        try:
            kind, content = self.connection.recv()
            if kind == "log":
                self._log(content)
            elif kind == "evaluation":
                self.connection.send(self._should_prune(*content))
            elif kind == "crash":
                raise TrialCrashed(content)
            else:
                return content
        except (EOFError, ConnectionError):
            return self._died()
        return None

    def end(self) -> None:
        """Wait for a process that has said its outcome, and kill one that has not."""
        self.connection.close()
        self._process.join(timeout=10)
        self.kill()

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self._process.join()

    def _died(self) -> TrialOutcome:
        self._process.join()
        code = self._process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return TrialOutcome("failed", None, f"{how}; most often the system ran out of memory", out_of_memory=True)


def slots(parallel: int | Literal["auto"], gpus_per_trial: int = 1) -> list[Slot]:
    """One slot per trial that may run at a time: devices of its own where there are any, else a share of the CPU.

    Raises:
        StudyConfigInvalid: there are fewer devices than the trials would need.
    """
    devices, cores = gpus(), len(os.sched_getaffinity(0))
    count = max(1, len(devices) // gpus_per_trial) if parallel == "auto" else parallel
    if count == 1:
        return [Slot()]
    if not devices:
        return [Slot(threads=max(1, cores // count))] * count
    if count * gpus_per_trial > len(devices):
        raise StudyConfigInvalid(
            f"study.parallel_trials is {count} with {gpus_per_trial} GPU each, and there are {len(devices)}. Set it to "
            f"{max(1, len(devices) // gpus_per_trial)} or auto: two trials on one GPU run out of memory by chance."
        )
    groups = [devices[start * gpus_per_trial : (start + 1) * gpus_per_trial] for start in range(count)]
    return [Slot(devices=",".join(group)) for group in groups]


def next_outcome(running: Iterable[RunningTrial]) -> tuple[RunningTrial, TrialOutcome]:
    """Answer whichever trial speaks until one has ended."""
    by_connection = {trial.connection: trial for trial in running}
    while True:
        for spoken in multiprocessing.connection.wait(list(by_connection)):
            trial = by_connection[spoken]  # type: ignore[index]
            if outcome := trial.hear():
                return trial, outcome


def _trial(connection: Connection, job: TrialJob, slot: Slot) -> None:
    end_with_parent()
    if slot.devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.devices  # before anything looks at a device
    for name in ("PET_NNODES", "WORLD_SIZE"):
        os.environ.pop(name, None)  # a trial trains on this machine alone

    def on_evaluation(step: int, loss: float) -> None:
        connection.send(("evaluation", (step, loss)))
        if connection.recv():
            raise _Pruned(f"cut short after step {step} at evaluation loss {loss:.4f}")

    connection.send(_told(job, slot, lambda text: connection.send(("log", text)), on_evaluation))


def _told(
    job: TrialJob, slot: Slot, log: Callable[[str], None], on_evaluation: Callable[[int, float], None]
) -> tuple[str, Any]:
    """Train, and put what happened into the trial's last message."""
    import torch

    if slot.threads:
        torch.set_num_threads(slot.threads)
    out = job.work / "adapter"
    out.mkdir(parents=True, exist_ok=True)
    try:
        report = elastic.train(job.base, job.dataset, out, job.work, job.config, log=log, on_evaluation=on_evaluation)
    except _Pruned as pruned:
        return "outcome", TrialOutcome("pruned", None, str(pruned))
    except Exception as error:  # what is no outcome the study raises: a bug must not pass for a failed trial
        if failed := _failed(error, job.is_searched):
            return "outcome", failed
        known = isinstance(error, LLMAssetsError)
        return "crash", f"{type(error).__name__}: {error}" if known else traceback.format_exc()
    return "outcome", TrialOutcome("complete", report.evaluation_loss)


def _failed(error: Exception, is_searched: bool) -> TrialOutcome | None:
    """The outcome of a trial whose parameters are to blame for an error; None where they are not."""
    import torch

    named = f"{type(error).__name__}: {error}"
    if isinstance(error, TrainingDiverged):
        return TrialOutcome("failed", None, named)
    if isinstance(
        error, (MemoryTooSmall, TrainingOutOfMemory, elastic.RankKilled, MemoryError, torch.OutOfMemoryError)
    ):
        return TrialOutcome("failed", None, named, out_of_memory=True)
    if is_searched and isinstance(error, TrainingConfigInvalid):
        return TrialOutcome("failed", None, f"these parameters cannot be trained here: {error}")
    return None
