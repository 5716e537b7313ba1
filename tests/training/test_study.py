import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llm_assets.training import StudyConfig
from llm_assets.training.study import (
    StudyEmpty,
    TrialRecord,
    best_parameters,
    check_beats_defaults,
    check_completed_trial,
    run_study,
    write_study,
)
from llm_assets.training.trial import TrialCrashed, run_trial

STUDY = StudyConfig.model_validate(
    {
        "trials": 4,
        "budget_share": 1.0,
        "evaluations": 2,
        "pruner_startup_trials": 1,
        "space": {"learning_rate": {"low": 1e-4, "high": 5e-2, "log": True}, "rank": {"choices": [2, 4]}},
    }
)


def record(number, state="complete", value=None, reason=""):
    return TrialRecord(number, state, value, {"rank": number}, steps=4, reason=reason)


@pytest.fixture(scope="module")
def inputs(tiny_base, dataset):
    return tiny_base, dataset


@pytest.fixture
def search(inputs, tmp_path, quick):
    def run(name, log=lambda _: None):
        out = tmp_path / f"out-{name}"
        work = tmp_path / f"work-{name}"
        out.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        return run_study(*inputs, out, work, STUDY, training=quick(), log=log), out

    return run


def test_a_killed_study_continues_to_the_same_trials_without_losing_or_repeating_one(inputs, search, tmp_path, quick):
    whole, expected = search("whole")
    assert [trial.number for trial in whole] == [0, 1, 2, 3]
    assert whole[0].parameters == {"learning_rate": 0.01, "rank": 4}
    assert any(trial.state == "pruned" for trial in whole)

    killed_at = kill_in_third_trial(inputs, tmp_path / "work-cut", quick())
    assert killed_at.startswith("trial 3")
    lines = []
    continued, found = search("cut", log=lines.append)
    assert continued == whole
    assert (found / "best.json").read_bytes() == (expected / "best.json").read_bytes()
    assert (found / "trials.parquet").read_bytes() == (expected / "trials.parquet").read_bytes()
    assert next(line for line in lines if " of 4: " in line).startswith("trial 3 of 4")


def kill_in_third_trial(inputs, work: Path, training) -> str:
    """Run the study in a process and kill it with SIGKILL while its third trial trains; return the line it died at."""
    work.mkdir()
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from llm_assets.training import StudyConfig, TrainingConfig\n"
        "from llm_assets.training.study import run_study\n"
        "if __name__ == '__main__':\n"
        "    base, dataset, work, study, training = sys.argv[1:]\n"
        "    run_study(Path(base), Path(dataset), Path(work), Path(work), StudyConfig.model_validate_json(study),\n"
        "        training=TrainingConfig.model_validate_json(training), log=lambda text: print(text, flush=True))\n"
    )
    path = work.parent / "study_script.py"
    path.write_text(script)
    arguments = [str(p) for p in (*inputs, work)] + [STUDY.model_dump_json(), training.model_dump_json()]
    repository = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, str(path), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": repository},
    ) as process:
        for line in process.stdout:
            if line.startswith("trial 3: base model"):
                process.send_signal(signal.SIGKILL)
                return line
    raise AssertionError("the study ended before its third trial trained")


def test_a_trial_that_is_killed_is_a_failed_trial_with_the_reason(inputs, tmp_path, quick):
    def kill(step, loss):
        multiprocessing.active_children()[0].kill()
        return False

    outcome = run_trial(*inputs, tmp_path, quick(), log=lambda _: None, should_prune=kill)
    assert outcome.state == "failed"
    assert "killed by SIGKILL; most often the system ran out of memory" in outcome.reason


def test_a_trial_that_diverges_is_a_failed_trial_with_the_reason(inputs, tmp_path, quick):
    config = quick(alpha=10**38, evaluate_every_steps=4, warmup_share=0)
    outcome = run_trial(*inputs, tmp_path, config, log=lambda _: None, should_prune=lambda *_: False)
    assert outcome.state == "failed"
    assert outcome.reason.startswith("TrainingDiverged: Gradient norm is inf at step 1.")


def test_a_trial_cut_short_is_pruned_with_step_and_loss(inputs, tmp_path, quick):
    outcome = run_trial(*inputs, tmp_path, quick(), log=lambda _: None, should_prune=lambda *_: True)
    assert outcome.state == "pruned"
    assert outcome.reason.startswith("cut short after step 2 at evaluation loss ")


def test_an_error_that_no_parameters_would_avoid_ends_the_study(inputs, tmp_path, quick):
    base, _ = inputs
    with pytest.raises(TrialCrashed, match=r"DatasetUnusable: .*holds no pack"):
        run_trial(base, tmp_path, tmp_path / "work", quick(), log=lambda _: None, should_prune=lambda *_: False)


def test_the_best_trial_is_published_with_every_trial(tmp_path):
    write_study(tmp_path, [record(0, value=2.0), record(1, "pruned", reason="slow"), record(2, value=1.5)])
    assert json.loads((tmp_path / "best.json").read_text()) == {"parameters": {"rank": 2}, "value": 1.5}
    assert pq.read_table(tmp_path / "trials.parquet").column("state").to_pylist() == ["complete", "pruned", "complete"]
    assert best_parameters(tmp_path) == {"rank": 2}


def test_a_study_without_a_completed_trial_has_no_parameters_to_train_with(tmp_path):
    write_study(tmp_path, [record(0, "failed", reason="out of memory")])
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
