"""Search training parameters with Optuna, one trial after the other, so that a killed study continues where it was.

The sampler is seeded per trial number and trials run in turn: the same inputs give the same trials, interrupted or
not. That costs parallel trials on one machine, which has one GPU for them anyway.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.training import packs
from llm_assets.training.study_config import Choices, StudyConfig
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.trial import TrialOutcome, run_trial

if TYPE_CHECKING:
    import optuna

NAME = "training"


class StudyEmpty(LLMAssetsError):
    """A study has no completed trial."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it is published.

    Attributes:
        number: Place in the study; 0 has the YAML's own parameters.
        state: complete, pruned or failed.
        value: Evaluation loss at its end; None unless complete.
        parameters: The searched parameters.
        steps: Step of its last evaluation.
        reason: Why it was pruned or failed.
    """

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    steps: int
    reason: str


def run_study(
    base: Path,
    dataset: Path,
    out: Path,
    work: Path,
    study: StudyConfig,
    *,
    training: TrainingConfig,
    log: Callable[[str], None],
) -> list[TrialRecord]:
    """Run the trials that `work` does not hold yet; write `best.json` and `trials.parquet`.

    Args:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        out: Where the result is written.
        work: The study's storage and its trials' checkpoints; give it again to continue a killed study.
        study: What to search.
        training: The settings every trial shares.
        log: Receives the progress of every trial.

    Raises:
        StudyConfigInvalid: the training block's own parameters lie outside the search space.
        TrialCrashed: a trial failed for a reason other than its parameters.
    """
    own = study.require_defaults(training)
    full_steps = training.steps(len(packs.read_packs(dataset)))
    search = _open(work, study)
    search.enqueue_trial(own, skip_if_exists=True)
    log("starting the process that trials are forked from; it imports torch once")
    while trial := _next_trial(search, study):
        config = _trial_config(training, study, trial.params, full_steps)
        shown = ", ".join(f"{name} {value}" for name, value in trial.params.items())
        log(f"trial {trial.number + 1} of {study.trials}: {shown}")
        outcome = run_trial(
            base,
            dataset,
            work / f"trial-{trial.number}",
            config,
            log=_prefixed(log, trial),
            should_prune=_reporter(trial),
        )
        _tell(search, trial, outcome)
        log(f"trial {trial.number + 1} {outcome.state}: {outcome.evaluation_loss or outcome.reason}")
    records = [_record(trial) for trial in search.get_trials(deepcopy=False)]
    write_study(out, records)
    return records


def write_study(out: Path, records: list[TrialRecord]) -> None:
    """Write the best parameters and the trials, without times or paths."""
    best = best_trial(records)
    content = {"parameters": best.parameters if best else {}, "value": best.value if best else None}
    (out / "best.json").write_text(json.dumps(content, indent=1, sort_keys=True))
    rows = [{**vars(record), "parameters": json.dumps(record.parameters, sort_keys=True)} for record in records]
    schema = pa.schema(
        [
            ("number", pa.int32()),
            ("state", pa.string()),
            ("value", pa.float64()),
            ("parameters", pa.string()),
            ("steps", pa.int32()),
            ("reason", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), out / "trials.parquet")


def best_trial(records: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial of lowest value, the earliest of equals."""
    complete = [record for record in records if record.value is not None]
    return min(complete, key=lambda record: (record.value, record.number), default=None)


def best_parameters(study: Path) -> dict[str, Any]:
    """The parameters a published study found.

    Raises:
        StudyEmpty: no trial of it completed.
    """
    best = json.loads((study / "best.json").read_text())
    if best["value"] is None:
        raise StudyEmpty(
            "No trial of hpo_study completed, so there are no parameters to train with. Look at the reasons in its "
            "table of trials, change training or study settings, and materialize hpo_study again."
        )
    return best["parameters"]


def check_completed_trial(records: list[TrialRecord]) -> CheckResult:
    """At least one trial ran to its end."""
    counts = {state: sum(record.state == state for record in records) for state in ("complete", "pruned", "failed")}
    return CheckResult(
        passed=counts["complete"] > 0,
        summary=f"{counts['complete']} of {len(records)} trials completed, {counts['pruned']} were pruned, "
        f"{counts['failed']} failed.",
        numbers={f"{state}_trials": count for state, count in counts.items()},
        rows=[{"trial": r.number, "state": r.state, "reason": r.reason} for r in records if r.state == "failed"][:20],
    )


def check_beats_defaults(records: list[TrialRecord]) -> CheckResult:
    """A searched trial has a lower loss than the YAML's own parameters; never stops anything."""
    best, default = best_trial(records), records[0].value if records else None
    if best is None or default is None or best.value is None:
        return CheckResult(False, "The YAML's own parameters did not complete a trial.", warn_only=True)
    return CheckResult(
        passed=best.value < default,
        summary=f"Best evaluation loss {best.value:.4f} (trial {best.number}), the YAML's own parameters {default:.4f}."
        + ("" if best.value < default else " Nothing better was found: search more trials or another space."),
        numbers={"best_value": best.value, "default_value": default},
        warn_only=True,
    )


def _open(work: Path, study: StudyConfig) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=study.pruner_startup_trials),
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner(reduction_factor=study.reduction_factor),
        "none": optuna.pruners.NopPruner(),
    }
    return optuna.create_study(
        study_name=NAME,
        storage=f"sqlite:///{work / 'study.db'}",
        pruner=pruners[study.pruner],
        load_if_exists=True,
    )


def _next_trial(search: "optuna.Study", study: StudyConfig) -> "optuna.Trial | None":
    """The trial a killed process left running, else a new one, else None when the study is whole."""
    import optuna

    begun = [t for t in search.get_trials(deepcopy=False) if t.state != optuna.trial.TrialState.WAITING]
    running = [t for t in begun if t.state == optuna.trial.TrialState.RUNNING]
    number = running[0].number if running else len(begun)
    if number >= study.trials:
        return None
    search.sampler = optuna.samplers.TPESampler(seed=study.seed * 100_003 + number, n_startup_trials=4)
    trial = optuna.Trial(search, running[0]._trial_id) if running else search.ask()
    for name, values in study.space.items():
        if isinstance(values, Choices):
            trial.suggest_categorical(name, values.choices)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            trial.suggest_int(name, values.low, values.high, log=values.log)
        else:
            trial.suggest_float(name, values.low, values.high, log=values.log)
    return trial


def _trial_config(
    training: TrainingConfig, study: StudyConfig, parameters: dict[str, Any], full_steps: int
) -> TrainingConfig:
    every = study.steps_per_evaluation(full_steps)
    budget = {
        "epochs": None,
        "max_steps": study.trial_steps(full_steps),
        "evaluate_every_steps": every,
        "early_stopping_patience": None,
        "max_evaluation_loss": None,
    }
    return training.with_parameters({**parameters, **budget})


def _prefixed(log: Callable[[str], None], trial: "optuna.Trial") -> Callable[[str], None]:
    return lambda text: log(f"trial {trial.number + 1}: {text}")


def _reporter(trial: "optuna.Trial") -> Callable[[int, float], bool]:
    def should_prune(step: int, loss: float) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a continued trial repeats the steps after its checkpoint
            trial.report(loss, step)
        return trial.should_prune()

    return should_prune


def _tell(search: "optuna.Study", trial: "optuna.Trial", outcome: TrialOutcome) -> None:
    import optuna

    states = {
        "complete": optuna.trial.TrialState.COMPLETE,
        "pruned": optuna.trial.TrialState.PRUNED,
        "failed": optuna.trial.TrialState.FAIL,
    }
    trial.set_user_attr("reason", outcome.reason)
    search.tell(trial, outcome.evaluation_loss, state=states[outcome.state])


def _record(trial: "optuna.trial.FrozenTrial") -> TrialRecord:
    state = {"COMPLETE": "complete", "PRUNED": "pruned"}.get(trial.state.name, "failed")
    return TrialRecord(
        number=trial.number,
        state=state,
        value=trial.value if state == "complete" else None,
        parameters=dict(sorted(trial.params.items())),
        steps=max(trial.intermediate_values, default=0),
        reason=trial.user_attrs.get("reason", ""),
    )
