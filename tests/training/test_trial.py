import importlib
import os
import sys

import pytest

from llm_assets.training.forking import STACK, gpus, may_fork
from llm_assets.training.trial import RunningTrial, Slot, TrialCrashed, TrialJob, next_outcome, slots

ANYWHERE = Slot()


@pytest.fixture
def outcome(tiny_base, dataset, tmp_path):
    """Run one trial to its end."""

    def run(config, should_prune=lambda *_: False, slot=ANYWHERE, is_searched=True):
        job = TrialJob(tiny_base, dataset, tmp_path, config, is_searched)
        trial = RunningTrial(job, slot, log=lambda _: None, should_prune=lambda *seen: should_prune(trial, *seen))
        try:
            return next_outcome([trial])[1]
        finally:
            trial.end()

    return run


def test_a_trial_that_is_killed_is_a_failed_trial_with_the_reason(outcome, quick):
    found = outcome(quick(), lambda trial, step, loss: trial.kill())
    assert found.state == "failed"
    assert found.out_of_memory
    assert "killed by SIGKILL; most often the system ran out of memory" in found.reason


def test_a_trial_starts_from_a_fork_server_where_a_fork_is_not_safe(outcome, quick, monkeypatch):
    monkeypatch.setattr("llm_assets.training.forking.may_fork", lambda: False)
    assert outcome(quick(max_steps=1)).state == "complete"


def test_a_trial_that_diverges_is_a_failed_trial_with_the_reason(outcome, quick):
    found = outcome(quick(alpha=10**38, evaluate_every_steps=4, warmup_share=0))
    assert found.state == "failed"
    assert found.reason.startswith("TrainingDiverged: ")


def test_a_trial_that_no_plan_fits_is_a_failed_trial_for_lack_of_memory(outcome, quick):
    found = outcome(quick(rank=10**9))
    assert (found.state, found.out_of_memory) == ("failed", True)
    assert found.reason.startswith("MemoryTooSmall: ")


def test_drawn_parameters_that_cannot_be_trained_are_a_failed_trial_and_the_configurations_own_an_error(outcome, quick):
    wrong = quick(target_modules=("nowhere",))
    assert outcome(wrong).reason.startswith("these parameters cannot be trained here: training.target_modules names no")
    with pytest.raises(TrialCrashed, match=r"TrainingConfigInvalid: training\.target_modules names nowhere"):
        outcome(wrong, is_searched=False)


def test_a_trial_cut_short_is_pruned_with_step_and_loss(outcome, quick):
    found = outcome(quick(), lambda *_: True, Slot(threads=1))
    assert found.state == "pruned"
    assert found.reason.startswith("cut short after step 2 at evaluation loss ")


def test_every_trial_has_devices_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5,6,7")
    assert gpus() == ["3", "GPU-5", "6", "7"]
    assert [slot.devices for slot in slots("auto")] == ["3", "GPU-5", "6", "7"]
    assert [slot.devices for slot in slots(2, gpus_per_trial=2)] == ["3,GPU-5", "6,7"]
    assert slots(1) == [Slot()]
    with pytest.raises(
        ValueError, match=r"parallel_trials is 5 with 1 GPU each, and there are 4\. Set it to 4 or auto"
    ):
        slots(5)


def test_trials_without_devices_share_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cores = len(os.sched_getaffinity(0))
    assert slots("auto") == [Slot()]
    assert slots(2) == [Slot(threads=max(1, cores // 2))] * 2


def test_a_process_beside_a_device_is_never_forked(monkeypatch):
    for name in STACK:
        importlib.import_module(name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert may_fork() == (sys.modules["torch"].get_num_threads() == 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not may_fork()
