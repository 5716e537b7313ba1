"""A study in MLflow: one run for the study, and in it one run per trial, written when the study is published.

The study itself does not depend on it: a tracking server that is away costs the runs and a line that says so.
"""

import time
from typing import Any, Protocol

from llm_assets.training.study_records import StudyReport, TrialRecord

PARENT_TAG = "mlflow.parentRunId"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


class Tracking(Protocol):
    """What is needed of a tracking store."""

    def client(self) -> Any:
        """An `MlflowClient`."""
        ...

    def experiment_id(self, client: Any, name: str) -> str:
        """The experiment of that name."""
        ...


def log_study(tracking: Tracking, model: str, report: StudyReport, tags: dict[str, str]) -> str:
    """Write the study and its trials as nested runs into the experiment of the model.

    Returns:
        The id of the study's run, or why there is none.
    """
    try:
        client = tracking.client()
        experiment = tracking.experiment_id(client, model)
        parent = client.create_run(experiment, run_name="hpo_study", tags=tags).info.run_id
        for trial in report.trials:
            _log_trial(client, experiment, parent, trial, tags)
        best = report.best
        numbers = {"trials": len(report.trials), "pruned_trials": report.count("pruned"), "tokens": report.tokens}
        found = {"best_value": best.value} if best and best.value is not None else {}
        client.log_batch(parent, _metrics({**numbers, **found}), _parameters(best.parameters if best else {}), [])
        client.set_terminated(parent)
    except Exception as error:  # whatever the server or its driver raises: hours of trials are already published
        return f"not logged to MLflow: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return parent


def _log_trial(client: Any, experiment: str, parent: str, trial: TrialRecord, tags: dict[str, str]) -> None:
    described = {**tags, PARENT_TAG: parent, "state": trial.state, "reason": trial.reason[:1000]}
    run = client.create_run(experiment, run_name=f"trial {trial.number}", tags=described).info.run_id
    numbers = {"evaluation_loss": trial.value, "tokens": trial.tokens, "steps": trial.steps, "seconds": trial.seconds}
    client.log_batch(run, _metrics(numbers), _parameters(trial.parameters), [])
    client.set_terminated(run, status=STATUS[trial.state])


def _metrics(numbers: dict[str, float | None]) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, float(value), now, 0) for name, value in numbers.items() if value is not None]


def _parameters(values: dict[str, Any]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in values.items()]
