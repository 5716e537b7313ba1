"""One of the processes that train together, from its start to its result; the agent in the step has started it.

The first of them talks to the step through a pipe, as one process would through its callbacks. The others print, into
files of their own that are read when they die.
"""

import gc
import json
import os
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training import ranks
from llm_assets.training.forking import end_with_parent, gpus
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport

LOGS = "ranks"


class _Told(Exception):
    """Raised in the first process when the step has told it to end."""


@dataclass(frozen=True)
class ElasticJob:
    """What every process of a run is given."""

    base: Path
    dataset: Path
    out: Path
    work: Path
    config: TrainingConfig


def run_rank(job: ElasticJob, count: int, speaker: Connection | None) -> TrainingReport:
    """Train as one of the processes.

    Args:
        job: What all of them train.
        count: How many there are on this machine.
        speaker: The pipe to the step; None on machines that only join.
    """
    import torch
    from accelerate.state import AcceleratorState, GradientState

    gc.freeze()  # a store of the agent's, collected here, would wait for its thread, which no fork has
    end_with_parent()
    AcceleratorState._reset_state(reset_partial_state=True)  # of whatever this process was forked from
    GradientState._reset_state()
    on_gpu = bool(gpus())
    if not on_gpu:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    ranks.join("nccl" if on_gpu else "gloo")
    callbacks = _to_the_step(speaker) if speaker and ranks.is_first() else {"log": partial(print, flush=True)}
    try:
        return train_adapter(job.base, job.dataset, job.out, job.work, job.config, **callbacks)
    except LLMAssetsError as error:
        told = {"type": type(error).__name__, "text": str(error)}
        error_file(job.work, ranks.rank()).write_text(json.dumps(told))
        raise
    finally:
        ranks.leave()


def _to_the_step(speaker: Connection) -> dict[str, Any]:
    """The callbacks of the first process, which the step answers."""

    def on_evaluation(step: int, loss: float) -> None:
        speaker.send(("evaluation", step, loss))
        if not speaker.recv():
            raise _Told

    return {
        "log": lambda text: speaker.send(("log", text)),
        "on_evaluation": on_evaluation,
        "report": lambda step, curves: speaker.send(("curves", step, dict(curves))),
    }


def error_file(work: Path, rank: int) -> Path:
    """Where a process writes an error of the project's own, so that the step can raise it again."""
    return work / LOGS / f"error-{rank}.json"
