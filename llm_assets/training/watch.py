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

from llm_assets.training import ranks
from llm_assets.training.checkpoints import explained, seal
from llm_assets.training.loss import EvaluationLoss
from llm_assets.training.optimizer_step import DIVERGED_REMEDY, StepRunner, TrainingDiverged
from llm_assets.training.throughput import Throughput, peak_memory_bytes
from llm_assets.training.training_config import TrainingConfig

PROGRESS_EVERY_SECONDS = 10.0
PROGRESS_LINES = 40  # of a whole run: beyond that they bury everything else
DIVERGENCE_WINDOW_STEPS = 10
DIVERGENCE_NATS = 1.0


@dataclass(frozen=True)
class Judge:
    """What a watch is given: the settings, and what to call.

    Attributes:
        config: The training settings.
        runner: Knows the rows of the step under way.
        throughput: Measures steps.
        origin: Digests of the run's inputs, sealed into every checkpoint.
        evaluate: Returns the evaluation loss of the model as it is; None trains without evaluation.
        save_best: Writes the trained weights as they are.
        log: Receives progress lines.
        on_evaluation: Called with step and evaluation loss; may raise to end the run.
        report: Called with step and the run's curves by name.
    """

    config: TrainingConfig
    runner: StepRunner
    throughput: Throughput
    origin: Mapping[str, str]
    evaluate: Callable[[], EvaluationLoss] | None
    save_best: Callable[[Path], None]
    log: Callable[[str], None]
    on_evaluation: Callable[[int, float], None] | None
    report: Callable[[int, Mapping[str, float]], None]


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
            self.speed: dict[str, float] = {}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self.judge.evaluate and not evaluations(state.log_history):
                loss = self.judge.evaluate()
                self._record(state, loss)
                self.judge.log(f"base model: evaluation loss {loss}")
            if state.global_step:
                self.judge.log(f"continuing after step {state.global_step} of {state.max_steps}")
            self.began, self.began_step = time.monotonic(), state.global_step

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.judge.throughput.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.speed = self.judge.throughput.end(self.judge.runner.lengths, self.judge.runner.supervised)
            step, config = state.global_step, self.judge.config
            if self.judge.evaluate and (step % config.evaluate_every_steps == 0 or step == state.max_steps):
                self._evaluate(Path(args.output_dir), state, control)
            elif step == state.max_steps or self._is_time_to_speak(state):
                self._say_where(state)

        def on_log(self, args: Any, state: Any, control: Any, **event: Any) -> None:
            logs: Mapping[str, float] = event["logs"]
            if "loss" not in logs:
                return
            require_convergence(
                state.global_step, logs, state.log_history, self.judge.config, self.judge.runner.named_rows()
            )
            curves = {"loss": logs["loss"], "learning_rate": logs["learning_rate"], **self.speed}
            if "grad_norm" in logs:
                curves["gradient_norm"] = logs["grad_norm"]
            self.judge.report(state.global_step, {**curves, "memory_bytes": peak_memory_bytes(args.device.type)})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ranks.wait_for_all()  # each process writes its own random state
            if not ranks.is_first():
                return
            work = Path(args.output_dir)
            next_pack = state.global_step * self.judge.config.packs_per_step
            checkpoint = work / f"checkpoint-{state.global_step}"
            with explained(checkpoint):
                seal(checkpoint, {**self.judge.origin, "next_pack": str(next_pack)})
            for superseded in set(work.glob("best-*.safetensors")) - {best_path(work, best_step(state.log_history))}:
                superseded.unlink()

        def _record(self, state: Any, loss: EvaluationLoss) -> None:
            entry = {"step": state.global_step, "evaluation_loss": loss.mean, "half_width": loss.half_width}
            state.log_history.append(entry)
            self.judge.report(state.global_step, {"evaluation_loss": loss.mean})

        def _evaluate(self, work: Path, state: Any, control: Any) -> None:
            assert self.judge.evaluate is not None
            loss = self.judge.evaluate()
            self._record(state, loss)
            if not math.isfinite(loss.mean):
                raise TrainingDiverged(f"Evaluation loss is {loss.mean} at step {state.global_step}. {DIVERGED_REMEDY}")
            if self.judge.config.early_stopping_patience:
                best = best_step(state.log_history)
                if best == state.global_step:
                    self.judge.save_best(best_path(work, best))
                since_best = sum(step > best for step in evaluations(state.log_history))
                if since_best >= self.judge.config.early_stopping_patience and state.global_step < state.max_steps:
                    control.should_training_stop = True
                    control.should_save = False  # continued from here, a killed run would train on past the stop
            few = state.max_steps <= PROGRESS_LINES // 2 * self.judge.config.evaluate_every_steps
            ends = control.should_training_stop or state.global_step == state.max_steps
            if few or ends or self._is_time_to_speak(state):
                self._say_where(state, f"evaluation loss {loss}, ")
            if self.judge.on_evaluation:
                self.judge.on_evaluation(state.global_step, loss.mean)

        def _is_time_to_speak(self, state: Any) -> bool:
            whole = self._pace(state) * (state.max_steps - self.began_step)
            return time.monotonic() - self.said >= max(PROGRESS_EVERY_SECONDS, whole / PROGRESS_LINES)

        def _pace(self, state: Any) -> float:
            return (time.monotonic() - self.began) / (state.global_step - self.began_step)

        def _say_where(self, state: Any, evaluation: str = "") -> None:
            self.said = time.monotonic()
            pace = self._pace(state)
            recent = [entry["loss"] for entry in state.log_history[-4:] if "loss" in entry]
            loss = f"loss {recent[-1]:.4f}, " if recent else ""
            speed = f"{self.judge.throughput.tokens_per_second:,.0f} tokens/s"
            if share := self.judge.throughput.model_flops_share:
                speed += f" ({share:.0%} of peak)"
            left = pace * (state.max_steps - state.global_step)
            where = f"step {state.global_step}/{state.max_steps}"
            self.judge.log(f"{where}: {loss}{evaluation}{speed}, {pace:.2f} s per step, {left:.0f} s left")

    return Watch


def evaluations(history: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Evaluation loss by step; step 0 is the base model."""
    return {entry["step"]: entry["evaluation_loss"] for entry in history if "evaluation_loss" in entry}


def half_widths(history: Sequence[Mapping[str, Any]]) -> dict[int, float | None]:
    """Half of each evaluation's 95 % confidence interval by step."""
    return {entry["step"]: entry["half_width"] for entry in history if "evaluation_loss" in entry}


def best_step(history: Sequence[Mapping[str, Any]]) -> int:
    """The trained step of lowest evaluation loss, the earliest of equals; 0 before the first evaluation."""
    trained = {step: loss for step, loss in evaluations(history).items() if step}
    return min(trained, key=lambda step: (trained[step], step), default=0)


def best_path(work: Path, step: int) -> Path:
    """Where the best weights so far are kept."""
    return work / f"best-{step}.safetensors"


def require_convergence(
    step: int,
    logs: Mapping[str, float],
    history: Sequence[Mapping[str, Any]],
    config: TrainingConfig,
    rows: str,
) -> None:
    """Raise `TrainingDiverged` for a gradient that is not finite, or a loss that has risen for good.

    Risen: the mean of the last 10 steps is more than 1 nat above twice the mean of the first 10. A loss that is not
    finite has ended the run before, in the step itself.
    """
    norm = logs.get("grad_norm", 0.0)
    if not math.isfinite(norm) and config.compute_dtype != "float16":  # float16 probes its loss scale with overflows
        raise TrainingDiverged(f"Gradient norm is {norm} at step {step}, on {rows}. {DIVERGED_REMEDY}")
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if len(losses) < 2 * DIVERGENCE_WINDOW_STEPS:
        return
    window = DIVERGENCE_WINDOW_STEPS
    first, last = sum(losses[:window]) / window, sum(losses[-window:]) / window
    if last > 2 * first + DIVERGENCE_NATS:
        raise TrainingDiverged(
            f"Loss rose from {first:.3f} to {last:.3f} by step {step}, the last on {rows}. {DIVERGED_REMEDY}"
        )
