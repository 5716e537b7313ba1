import importlib
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest

from llm_assets.training import StudyConfig
from llm_assets.training.forking import STACK
from llm_assets.training.study import PackLengths, run_study, study_inputs
from llm_assets.training.study_records import read_study
from llm_assets.training.study_storage import JOURNAL, StudyStorageUnavailable, open_study
from llm_assets.training.trial import TrialCrashed

STUDY = StudyConfig.model_validate(
    {
        "trials": 4,
        "budget_share": 1.0,
        "evaluations": 2,
        "pruner_startup_trials": 1,
        "space": {"learning_rate": {"low": 1e-4, "high": 5e-2, "log": True}, "rank": {"choices": [2, 4]}},
    }
)


def changed(**fields) -> StudyConfig:
    return StudyConfig.model_validate({**STUDY.model_dump(exclude_unset=True), **fields})


@pytest.fixture(autouse=True, scope="module")
def imported():
    """Trials are forked from this process then, without an import of their own."""
    for name in STACK:
        importlib.import_module(name)


@pytest.fixture
def search(tiny_base, dataset, tmp_path, quick):
    """Run a study into `out-<name>` with its workspace in `work-<name>`."""

    def run(name, study=STUDY, log=lambda _: None, data=dataset, training=None, **options):
        out, work = tmp_path / f"out-{name}", tmp_path / f"work-{name}"
        out.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        return run_study(tiny_base, data, out, work, study, training=training or quick(), log=log, **options), out

    return run


@pytest.fixture
def work_of(tmp_path):
    return lambda name: tmp_path / f"work-{name}"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_killed_study_continues_to_the_same_bytes_without_losing_or_repeating_a_trial(
    tiny_base, dataset, search, work_of, tmp_path, quick
):
    whole, expected = search("whole")
    assert [trial.number for trial in whole.trials] == [0, 1, 2, 3]
    assert whole.trials[0].parameters == {"learning_rate": 0.01, "rank": 4}
    assert whole.count("pruned") > 0
    assert whole.tokens < whole.tokens_without_pruning == 4 * whole.origin.trial_tokens

    kill_in_third_trial(tiny_base, dataset, tmp_path, quick())
    with (work_of("cut") / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code":8,"worker')  # what a kill in the middle of a write leaves
    (work_of("cut") / f"{JOURNAL}.lock").symlink_to(work_of("cut") / JOURNAL)
    lines = []
    continued, found = search("cut", log=lines.append)
    assert continued.trials == whole.trials
    assert contents(found) == contents(expected)
    assert next(line for line in lines if " of 4: " in line).startswith("trial 3 of 4")


def kill_in_third_trial(base: Path, dataset: Path, directory: Path, training) -> None:
    """Run the study in a process of its own, and kill it while its third trial trains."""
    work = directory / "work-cut"
    work.mkdir()
    process = multiprocessing.get_context("fork").Process(
        target=run_study,
        args=(base, dataset, directory, work, STUDY),
        kwargs={"training": training, "log": lambda _: None},
    )
    process.start()
    while not list(work.glob("trial-2/adapter")):
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    time.sleep(0.5)  # its trial ends with it


def test_trials_in_parallel_all_run_and_a_trial_killed_at_every_start_is_given_up(search, work_of, quick):
    study = changed(trials=3, parallel_trials=2, pruner="none", space={"batch_packs": {"choices": [1, 2]}})
    work = work_of("parallel")
    work.mkdir()
    budget = study.budget(quick(), 8, 1.0)
    name = "interrupted"
    left = open_study(work, study, name, budget)
    left.enqueue_trial({"batch_packs": 2})
    trial = left.ask()
    trial.suggest_categorical("batch_packs", [1, 2])
    trial.set_user_attr("starts", 2)

    lines = []
    report, _ = search("parallel", study, log=lines.append, inputs=name)
    assert [trial.state for trial in report.trials] == ["failed", "complete", "complete"]
    assert report.trials[0].reason.startswith("the study was killed 2 times while it ran; method qlora, rank 4, up to ")
    starts = [line.split(" of ")[0] for line in lines if " of 3: " in line]
    assert starts == ["trial 2", "trial 3"]
    assert not list(work.glob("trial-*"))


def test_a_trial_that_runs_out_of_memory_fails_with_its_shape_and_the_study_goes_on(search):
    def kill_the_first(line):
        if line.startswith("trial 1: evaluation 1 of 2"):
            multiprocessing.active_children()[0].kill()

    report, _ = search("memory", changed(trials=2, pruner="none"), log=kill_the_first)
    assert [trial.state for trial in report.trials] == ["failed", "complete"]
    assert "killed by SIGKILL; most often the system ran out of memory (method qlora, rank 4, up to " in (
        report.trials[0].reason
    )
    assert " tokens in 2 packs per forward pass" in report.trials[0].reason


def test_batches_of_every_size_train_on_the_same_tokens(search, quick, dataset):
    study = changed(trials=2, evaluations=1, pruner="none", space={"batch_packs": {"choices": [1, 2]}}, seed=3)
    report, _ = search("sizes", study)
    assert {trial.parameters["batch_packs"] for trial in report.trials} == {1, 2}
    assert report.trials[0].tokens == report.trials[1].tokens == report.origin.trial_tokens
    assert PackLengths.of(dataset).trained(quick(), 4) == report.origin.trial_tokens


def test_an_unchanged_study_is_used_again_and_a_changed_one_starts_from_its_best(search, quick):
    study = changed(trials=2, pruner="hyperband")
    first, published = search("first", study)
    again, found = search("again", study, previous=published, training=quick(save_every_steps=1))
    assert again.reused
    assert contents(found) == contents(published)

    best = first.best.parameters
    lines = []
    wider = changed(trials=2, space={"learning_rate": {"low": 1e-5, "high": 0.1, "log": True}})
    training = quick(learning_rate=0.02)
    next_one, _ = search("wider", wider, previous=published, training=training, log=lines.append)
    assert not next_one.reused
    assert next_one.trials[1].parameters == {"learning_rate": best["learning_rate"]}
    assert next_one.origin.warm_start == {"learning_rate": best["learning_rate"]}
    without, _ = search("cold", changed(trials=1, warm_start=False), previous=published)
    assert without.origin.warm_start is None


def test_what_decides_no_trial_does_not_decide_whether_a_study_is_used_again(tiny_base, dataset, quick):
    same = study_inputs(tiny_base, dataset, STUDY, quick())
    assert study_inputs(tiny_base, dataset, changed(storage_url="sqlite:///x.db"), quick(max_evaluation_loss=1)) == same
    assert study_inputs(tiny_base, dataset, changed(seed=1), quick()) != same
    assert study_inputs(tiny_base, dataset, STUDY, quick(weight_decay=0.1)) != same


def test_a_database_gives_the_trials_of_the_journal_and_its_password_is_nowhere(search, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDY_FILE", str(tmp_path / "study.db"))
    lines = []
    study = changed(trials=2, storage_url="sqlite:///${STUDY_FILE}")
    report, published = search("database", study, log=lines.append)
    expected, journal = search("journal", changed(trials=2))
    assert report.trials == expected.trials
    assert contents(published) == contents(journal)
    assert str(tmp_path) not in "".join(lines) + (published / "study.json").read_text()

    monkeypatch.setenv("STUDY_PASSWORD", "hunter2")
    with pytest.raises(StudyStorageUnavailable, match=r"database .*\*\*\*@nowhere.* cannot be used") as refusal:
        search("away", changed(storage_url="postgresql://u:${STUDY_PASSWORD}@nowhere/optuna"))
    assert "hunter2" not in str(refusal.value)


def test_parameters_that_contradict_each_other_are_a_failed_trial_and_the_study_goes_on(search, quick):
    study = changed(
        trials=2,
        sampler="random",
        space={"method": {"choices": ["full", "lora"]}, "use_rslora": {"choices": [False, True]}},
        seed=5,
    )
    lines = []
    training = quick(method="lora")
    report, out = search("mixed", study, training=training, log=lines.append)
    states = {(t.parameters["method"], t.parameters["use_rslora"]): t.state for t in report.trials}
    assert states[("lora", False)] == "complete"
    assert all(state == "failed" for (method, rslora), state in states.items() if method == "full" and rslora)
    assert read_study(out).trials == report.trials


def test_a_draw_that_no_plan_fits_is_a_failed_trial_with_its_shape_and_the_study_goes_on(search, quick):
    drawn = {"rank": {"choices": [4, 10**9]}}
    study = changed(trials=3, evaluations=1, pruner="none", sampler="random", space=drawn, seed=1)
    report, _ = search("huge", study, training=quick(max_steps=2))
    assert {(trial.parameters["rank"], trial.state) for trial in report.trials} == {(4, "complete"), (10**9, "failed")}
    reason = next(trial.reason for trial in report.trials if trial.state == "failed")
    assert reason.startswith("MemoryTooSmall: ")
    assert "(method qlora, rank 1000000000, up to " in reason


def test_own_settings_that_cannot_be_trained_end_the_study(search, quick):
    with pytest.raises(TrialCrashed, match=r"TrainingConfigInvalid: training\.target_modules names nowhere"):
        search("wrong", changed(trials=1), training=quick(target_modules=("nowhere",)))


def test_a_dataset_without_rows_ends_the_study_before_a_trial(search, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pack"):
        search("empty", data=tmp_path / "empty")


def test_an_error_that_no_parameters_would_avoid_ends_the_study_every_time(search, dataset, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(dataset, broken, ignore=shutil.ignore_patterns("validation.*"))
    for _ in range(3):
        with pytest.raises(TrialCrashed, match=r"DatasetUnusable: .*validation.arrow does not exist"):
            search("broken", data=broken)
