import json

import pyarrow.parquet as pq
import pytest

from llm_assets.training.study_importance import parameter_importance
from llm_assets.training.study_records import (
    StudyEmpty,
    StudyOrigin,
    StudyReport,
    TrialRecord,
    best_parameters,
    check_beats_defaults,
    check_completed_trial,
    read_study,
    write_study,
)
from llm_assets.training.study_runs import log_study

ORIGIN = StudyOrigin("digest", trial_tokens=100)


def record(number, state="complete", value=None, reason="", tokens=100, **parameters):
    return TrialRecord(number, state, value, parameters or {"rank": number}, 4, tokens, reason, seconds=2.0)


def test_the_best_trial_is_published_with_every_trial_and_reads_back(tmp_path):
    trials = [record(0, value=2.0), record(1, "pruned", reason="slow"), record(2, value=1.5)]
    write_study(tmp_path, StudyReport(trials, ORIGIN))
    assert json.loads((tmp_path / "best.json").read_text()) == {"parameters": {"rank": 2}, "value": 1.5}
    assert pq.read_table(tmp_path / "trials.parquet").column("state").to_pylist() == ["complete", "pruned", "complete"]
    assert best_parameters(tmp_path) == {"rank": 2}
    assert read_study(tmp_path) == StudyReport(trials, ORIGIN, reused=True)


def test_pruning_is_counted_against_trials_that_ran_whole():
    report = StudyReport([record(0, value=2.0), record(1, "pruned", tokens=25), record(2, "failed", tokens=10)], ORIGIN)
    assert report.tokens == 135
    assert report.tokens_without_pruning == 210
    assert report.seconds == 6.0


def test_a_study_without_a_completed_trial_has_no_parameters_to_train_with(tmp_path):
    write_study(tmp_path, StudyReport([record(0, "failed", reason="out of memory")], ORIGIN))
    with pytest.raises(StudyEmpty, match="No trial of hpo_study completed"):
        best_parameters(tmp_path)


def test_one_completed_trial_is_enough():
    assert check_completed_trial([record(0, "failed", reason="NaN"), record(1, value=1.0)]).passed


def test_no_completed_trial_fails_the_check_with_the_reasons():
    result = check_completed_trial([record(0, "failed", reason="out of memory")])
    assert not result.passed
    assert result.rows == [{"trial": 0, "state": "failed", "reason": "out of memory"}]


def test_a_better_trial_beats_the_defaults():
    assert check_beats_defaults([record(0, value=2.0), record(1, value=1.0)]).passed


@pytest.mark.parametrize("trials", [[record(0, value=1.0), record(1, value=2.0)], [record(0, "failed")], []])
def test_defaults_that_are_not_beaten_only_warn(trials):
    result = check_beats_defaults(trials)
    assert not result.passed
    assert result.warn_only


def test_the_parameter_that_decides_the_loss_is_the_important_one():
    trials = [
        record(n, value=float(n % 4), learning_rate=10.0 ** -(n % 4), scheduler=["cosine", "linear"][n // 4 % 2])
        for n in range(16)
    ]
    found = parameter_importance(trials)
    assert list(found) == ["learning_rate", "scheduler"]
    assert sum(found.values()) == pytest.approx(1)
    assert parameter_importance(trials[:3]) == {}


def test_a_tracking_server_that_is_away_is_told_and_stops_nothing():
    class Away:
        def client(self):
            raise ConnectionError("mlflow:5000 does not answer")

        def experiment_id(self, client, name):
            raise AssertionError

    said = log_study(Away(), "tiny", StudyReport([record(0, value=1.0)], ORIGIN), {})
    assert said == "not logged to MLflow: ConnectionError: mlflow:5000 does not answer"
