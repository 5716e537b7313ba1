"""Search training parameters with Optuna, each trial in its own process, so that a killed study continues where it was.

The sampler is seeded per trial number. One trial at a time, the same inputs give the same trials, interrupted or not;
several at a time finish sooner and depend on which ends first.
"""

import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.training.elastic import processes_here
from llm_assets.training.pack_lengths import PackLengths
from llm_assets.training.search_space import held_values, restored, stored, suggest
from llm_assets.training.study_config import Budget, StudyConfig
from llm_assets.training.study_inputs import study_inputs
from llm_assets.training.study_records import (
    StudyOrigin,
    StudyReport,
    TrialRecord,
    best_parameters,
    read_study,
    write_study,
)
from llm_assets.training.study_storage import open_study
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.trial import RunningTrial, Slot, TrialCrashed, TrialJob, TrialOutcome, next_outcome, slots

if TYPE_CHECKING:
    import optuna

__all__ = ["best_parameters", "run_study", "study_inputs"]
STARTS_AT_MOST = 2
QUIET_SECONDS = 30.0


def run_study(
    base: Path,
    dataset: Path,
    out: Path,
    work: Path,
    study: StudyConfig,
    *,
    training: TrainingConfig,
    log: Callable[[str], None],
    inputs: str | None = None,
    previous: Path | None = None,
) -> StudyReport:
    """Run the trials that `work` does not hold yet; write `best.json`, `trials.parquet` and `study.json`.

    Args:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        out: Where the result is written.
        work: The study's storage and its trials' checkpoints; give it again to continue a killed study.
        study: What to search.
        training: The settings every trial shares.
        log: Receives the progress of every trial.
        inputs: `study_inputs` of the above, where more than that decides the result.
        previous: The study published before: used again if it has the same inputs, else its best parameters are tried.

    Raises:
        StudyConfigInvalid: the training block's own parameters lie outside the search space.
        DatasetUnusable: there is nothing to train on.
        TrialCrashed: a trial failed for a reason other than its parameters.
    """
    own = study.require_defaults(training)
    inputs = inputs or study_inputs(base, dataset, study, training)
    before = read_study(previous) if previous and (previous / "study.json").exists() else None
    if before and before.origin.inputs == inputs and before.best:
        log(f"nothing that decides a trial has changed: the study of {len(before.trials)} trials is used again")
        write_study(out, before)
        return before
    lengths = PackLengths.of(dataset)
    budget = study.budget(training, len(lengths.packs), float(lengths.tokens.mean()))
    warm = held_values(study.space, before.best.parameters) if study.warm_start and before and before.best else {}
    warm = None if warm in ({}, own) else warm
    search = open_study(work, study, inputs, budget)
    for parameters in filter(None, (own, warm)):
        search.enqueue_trial({name: stored(value) for name, value in parameters.items()}, skip_if_exists=True)
    runner = _Runner(search, study, training, budget, lengths, log, base, dataset, work)
    runner.run(slots(study.parallel_trials, processes_here(training)))
    origin = StudyOrigin(inputs, lengths.trained(training, budget.steps(training)[0]), warm)
    report = StudyReport([runner.record(trial) for trial in _begun(search)], origin)
    write_study(out, report)
    return report


@dataclass
class _Runner:
    """The loop over trials, and what one trial's life needs to know."""

    search: "optuna.Study"
    study: StudyConfig
    training: TrainingConfig
    budget: Budget
    lengths: PackLengths
    log: Callable[[str], None]
    base: Path
    dataset: Path
    work: Path
    _said: float = field(default_factory=time.monotonic)

    def run(self, free: list[Slot]) -> None:
        """Keep every slot busy until all trials have ended."""
        running: dict[RunningTrial, optuna.Trial] = {}
        interrupted = [t for t in _begun(self.search) if t.state.name == "RUNNING"]
        try:
            while True:
                while free and (trial := self._next(interrupted)):
                    if started := self._start(trial, free[0]):
                        running[started] = trial
                        free = free[1:]
                if not running:
                    return
                ended, outcome = next_outcome(running)
                trial = running.pop(ended)
                ended.end()
                free = [*free, ended.slot]
                self._tell(trial, outcome, time.monotonic() - ended.began)
        except TrialCrashed:
            for trial in running.values():
                trial.set_user_attr("starts", 0)  # a bug is told every time, not counted as the trial's failure
            raise
        finally:
            for process in running:
                process.kill()

    def _next(self, interrupted: "list[optuna.trial.FrozenTrial]") -> "optuna.Trial | None":
        """A trial that a kill interrupted, else a new one, else None when the study is whole."""
        import optuna

        if interrupted:
            frozen = interrupted.pop(0)
            self._seed(frozen.number)
            trial = optuna.Trial(self.search, frozen._trial_id)
        else:
            number = len(_begun(self.search))
            if number >= self.study.trials:
                return None
            self._seed(number)
            trial = self.search.ask()
        suggest(trial, self.study.space)
        return trial

    def _seed(self, number: int) -> None:
        from optuna.samplers import RandomSampler, TPESampler

        seed = self.study.seed * 100_003 + number
        startup = self.study.sampler_startup_trials
        tpe = self.study.sampler == "tpe"
        self.search.sampler = TPESampler(seed=seed, n_startup_trials=startup) if tpe else RandomSampler(seed=seed)

    def _start(self, trial: "optuna.Trial", slot: Slot) -> RunningTrial | None:
        """Start a trial's process, unless its parameters contradict each other or it was running at every kill."""
        starts = trial.user_attrs.get("starts", 0) + 1
        if starts > STARTS_AT_MOST:
            reason = f"the study was killed {STARTS_AT_MOST} times while it ran; {self._shape(trial)}"
            self._tell(trial, TrialOutcome("failed", None, reason))
            return None
        trial.set_user_attr("starts", starts)
        shown = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        self._say(f"trial {trial.number + 1} of {self.study.trials}: {shown}")
        try:
            config = self._config(trial.params)
        except ValueError as error:
            self._tell(trial, TrialOutcome("failed", None, f"these parameters contradict each other: {error}"))
            return None
        place = self.work / f"trial-{trial.number}"
        place.mkdir(exist_ok=True)
        return RunningTrial(
            TrialJob(self.base, self.dataset, place, config, is_searched=trial.number > 0),
            slot,
            log=lambda text: self._pass_on(trial, text),
            should_prune=lambda step, loss: self._should_prune(trial, step // config.evaluate_every_steps, loss),
        )

    def _config(self, parameters: dict[str, Any]) -> TrainingConfig:
        chosen = restored(self.study.space, parameters)
        once = {
            "epochs": None,
            "max_steps": 1,
            "early_stopping_patience": None,
            "max_evaluation_loss": None,
            "report_to": (),
        }
        config = self.training.with_parameters({**chosen, **once})
        steps, every = self.budget.steps(config)
        return config.with_parameters({"max_steps": steps, "evaluate_every_steps": every})

    def _should_prune(self, trial: "optuna.Trial", evaluation: int, loss: float) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a continued trial repeats the steps after its checkpoint
            trial.report(loss, evaluation)
        self._say(f"trial {trial.number + 1}: evaluation {evaluation} of {self.budget.evaluations}, loss {loss:.4f}")
        return evaluation < self.budget.evaluations and trial.should_prune()

    def _tell(self, trial: "optuna.Trial", outcome: TrialOutcome, seconds: float = 0.0) -> None:
        import optuna

        reason = f"{outcome.reason} ({self._shape(trial)})" if outcome.out_of_memory else outcome.reason
        trial.set_user_attr("reason", reason)
        trial.set_user_attr("seconds", round(seconds, 3))
        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        self.search.tell(trial, outcome.evaluation_loss, state=optuna.trial.TrialState[states[outcome.state]])
        shutil.rmtree(self.work / f"trial-{trial.number}", ignore_errors=True)
        self._say(f"trial {trial.number + 1} {outcome.state}: {outcome.evaluation_loss or reason}")

    def _shape(self, trial: "optuna.Trial") -> str:
        """What a trial asked of memory."""
        config = self._config(trial.params)
        packs = config.packs_per_step if config.batch_packs == "auto" else config.batch_packs
        tokens = f"up to {self.lengths.largest(packs):,} tokens in {packs} packs per forward pass"
        recomputed = f"gradient_checkpointing {config.gradient_checkpointing}"
        return f"method {config.method}, rank {config.rank}, {tokens}, {recomputed}"

    def _pass_on(self, trial: "optuna.Trial", text: str) -> None:
        if time.monotonic() - self._said > QUIET_SECONDS:
            self._say(f"trial {trial.number + 1}: {text}")

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self.log(text)

    def record(self, trial: "optuna.trial.FrozenTrial") -> TrialRecord:
        """A trial as it is published."""
        state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
        evaluations = max(trial.intermediate_values, default=0)
        steps = evaluations * self._config(trial.params).evaluate_every_steps if evaluations else 0
        return TrialRecord(
            number=trial.number,
            state=state,
            value=trial.value if state == "complete" else None,
            parameters=restored(self.study.space, trial.params),
            steps=steps,
            tokens=self.lengths.trained(self._config(trial.params), steps) if steps else 0,
            reason=trial.user_attrs.get("reason", ""),
            seconds=trial.user_attrs.get("seconds"),
        )


def _begun(search: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that are not merely queued, in order."""
    return [trial for trial in search.get_trials(deepcopy=False) if trial.state.name != "WAITING"]
