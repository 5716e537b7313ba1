"""One trial of a study in a process of its own, so that memory returns to the system whatever happens in it.

The processes are forked from a server that has imported the heavy packages once; a trial starts in well under a second
on a CPU. A trial that runs out of memory or diverges is an outcome, not a crash.
"""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from llm_assets.core import LLMAssetsError
from llm_assets.training.trainer import TrainingOutOfMemory, train_adapter
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.watch import TrainingDiverged

PRELOADED = (
    "torch", "bitsandbytes", "peft", "transformers.trainer", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.integrations.bitsandbytes", "pyarrow.parquet",
    "llm_assets.training.trainer",
)  # fmt: skip


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


def run_trial(
    base: Path,
    dataset: Path,
    work: Path,
    config: TrainingConfig,
    *,
    log: Callable[[str], None],
    should_prune: Callable[[int, float], bool],
) -> TrialOutcome:
    """Train with one choice of parameters in a separate process.

    Args:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        work: The trial's own directory; give it again to continue a killed trial.
        config: The trial's settings.
        log: Receives the trial's progress lines.
        should_prune: Called with step and evaluation loss; True cuts the trial short.

    Raises:
        TrialCrashed: the trial raised anything but divergence or lack of memory.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED))
    ours, theirs = server.Pipe()
    process = server.Process(target=_trial, args=(theirs, base, dataset, work, config), daemon=True)
    process.start()
    theirs.close()
    try:
        return _converse(ours, log, should_prune) or _died(process)
    finally:
        ours.close()
        process.join(timeout=30)
        if process.is_alive():
            process.kill()


def _converse(
    connection: Connection, log: Callable[[str], None], should_prune: Callable[[int, float], bool]
) -> TrialOutcome | None:
    """Answer a trial's messages until its outcome; None when it died without one."""
    while True:
        try:
            kind, content = connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        if kind == "log":
            log(content)
        elif kind == "evaluation":
            connection.send(should_prune(*content))
        elif kind == "crash":
            raise TrialCrashed(content)
        else:
            return content


def _died(process: Any) -> TrialOutcome:
    process.join()
    code = process.exitcode or 0
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return TrialOutcome("failed", None, f"{how}; most often the system ran out of memory")


def _trial(connection: Connection, base: Path, dataset: Path, work: Path, config: TrainingConfig) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG; a killed study must not leave its trial training
    if multiprocessing.parent_process() is None or os.getppid() == 1:
        return

    def on_evaluation(step: int, loss: float) -> None:
        connection.send(("evaluation", (step, loss)))
        if connection.recv():
            raise _Pruned(f"cut short after step {step} at evaluation loss {loss:.4f}")

    out = work / "adapter"
    out.mkdir(parents=True, exist_ok=True)
    try:
        report = train_adapter(
            base,
            dataset,
            out,
            work,
            config,
            log=lambda text: connection.send(("log", text)),
            on_evaluation=on_evaluation,
        )
        outcome = TrialOutcome("complete", report.evaluation_loss)
    except _Pruned as pruned:
        outcome = TrialOutcome("pruned", None, str(pruned))
    except (TrainingDiverged, TrainingOutOfMemory) as error:
        outcome = TrialOutcome("failed", None, f"{type(error).__name__}: {error}")
    except LLMAssetsError as error:
        connection.send(("crash", f"{type(error).__name__}: {error}"))
        return
    except Exception:  # the parent raises it: a bug must not pass for a failed trial
        connection.send(("crash", traceback.format_exc()))
        return
    connection.send(("outcome", outcome))
