"""What is looked at while a model trains: progress, loss, evaluation, and the reasons to stop.

Everything it decides from is in the trainer's own log history, which checkpoints carry, so a resumed run decides the
same.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.checkpoints import seal
from llm_assets.training.training_config import TrainingConfig

PROGRESS_EVERY_SECONDS = 10.0
DIVERGENCE_WINDOW_STEPS = 10
DIVERGENCE_NATS = 1.0


class TrainingDiverged(LLMAssetsError):
    """The loss or the gradient is not finite, or the loss has left where it began."""


@dataclass(frozen=True)
class Judge:
    """What a watch is given: the settings, and what to call.

    Attributes:
        config: The training settings.
        evaluate: Returns the evaluation loss of the model as it is.
        save_best: Writes the trained weights as they are.
        log: Receives progress lines.
        on_evaluation: Called with step and evaluation loss; may raise to end the run.
    """

    config: TrainingConfig
    evaluate: Callable[[], float]
    save_best: Callable[[Path], None]
    log: Callable[[str], None]
    on_evaluation: Callable[[int, float], None] | None


@cache
def watch_class() -> type:
    """The trainer callback; built on first use because its base class lives in transformers."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Evaluates, reports, keeps the best adapter and ends a run that diverges."""

        def __init__(self, judge: Judge) -> None:
            self.judge = judge
            self.began = self.said = time.monotonic()
            self.began_step = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began, self.began_step = time.monotonic(), state.global_step
            if not evaluations(state.log_history):
                state.log_history.append({"step": 0, "evaluation_loss": self.judge.evaluate()})
            self.judge.log(f"base model: evaluation loss {evaluations(state.log_history)[0]:.4f}")
            if state.global_step:
                self.judge.log(f"continuing after step {state.global_step} of {state.max_steps}")

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step % self.judge.config.evaluate_every_steps == 0 or step == state.max_steps:
                self._evaluate(Path(args.output_dir), state, control)
            elif time.monotonic() - self.said >= PROGRESS_EVERY_SECONDS:
                self._say_where(state)

        def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
            logs: Mapping[str, float] = event["logs"]
            if "loss" in logs:
                require_convergence(state.global_step, logs, state.log_history, self.judge.config)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            work = Path(args.output_dir)
            seal(work / f"checkpoint-{state.global_step}")
            for superseded in set(work.glob("best-*.safetensors")) - {best_path(work, best_step(state.log_history))}:
                superseded.unlink()

        def _evaluate(self, work: Path, state: Any, control: Any) -> None:
            loss = self.judge.evaluate()
            state.log_history.append({"step": state.global_step, "evaluation_loss": loss})
            if not math.isfinite(loss):
                raise TrainingDiverged(f"Evaluation loss is {loss} at step {state.global_step}. {_REMEDY}")
            if self.judge.config.early_stopping_patience:
                best = best_step(state.log_history)
                if best == state.global_step:
                    self.judge.save_best(best_path(work, best))
                since_best = sum(step > best for step in evaluations(state.log_history))
                control.should_training_stop |= since_best >= self.judge.config.early_stopping_patience
            self._say_where(state, f"evaluation loss {loss:.4f}, ")
            if self.judge.on_evaluation:
                self.judge.on_evaluation(state.global_step, loss)

        def _say_where(self, state: Any, evaluation: str = "") -> None:
            self.said = time.monotonic()
            pace = (self.said - self.began) / (state.global_step - self.began_step)
            left = pace * (state.max_steps - state.global_step)
            recent = [entry["loss"] for entry in state.log_history[-3:] if "loss" in entry]
            loss = f"loss {recent[-1]:.4f}, " if recent else ""
            where = f"step {state.global_step}/{state.max_steps}"
            self.judge.log(f"{where}: {loss}{evaluation}{pace:.2f} s per step, {left:.0f} s left")

    return Watch


_REMEDY = "Lower training.learning_rate, raise warmup_share, or look at the rows of this step."


def evaluations(history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Evaluation loss by step; step 0 is the base model."""
    return {entry["step"]: entry["evaluation_loss"] for entry in history if "evaluation_loss" in entry}


def best_step(history: Sequence[Mapping[str, Any]]) -> int:
    """The trained step of lowest evaluation loss, the earliest of equals; 0 before the first evaluation."""
    trained = {step: loss for step, loss in evaluations(history).items() if step}
    return min(trained, key=lambda step: (trained[step], step), default=0)


def best_path(work: Path, step: int) -> Path:
    """Where the best weights so far are kept."""
    return work / f"best-{step}.safetensors"


def require_convergence(
    step: int, logs: Mapping[str, float], history: Sequence[Mapping[str, Any]], config: TrainingConfig
) -> None:
    """Raise `TrainingDiverged` for a loss or gradient that is not finite, or a loss that has risen for good.

    Risen: the mean of the last 10 steps is more than 1 nat above twice the mean of the first 10.
    """
    if not math.isfinite(logs["loss"]):
        raise TrainingDiverged(f"Loss is {logs['loss']} at step {step}. {_REMEDY}")
    norm = logs.get("grad_norm", 0.0)
    if not math.isfinite(norm) and config.compute_dtype != "float16":  # float16 probes its loss scale with overflows
        raise TrainingDiverged(f"Gradient norm is {norm} at step {step}. {_REMEDY}")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if len(losses) < 2 * DIVERGENCE_WINDOW_STEPS:
        return
    window = DIVERGENCE_WINDOW_STEPS
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    if last > 2 * first + DIVERGENCE_NATS:
        raise TrainingDiverged(f"Loss rose from {first:.3f} to {last:.3f} by step {step}. {_REMEDY}")
