"""What a run does when memory, disk, process or numbers fail it: goes on, or stops with everything before it whole."""

import hashlib
import multiprocessing
import os
import resource
import signal
from contextlib import contextmanager

import pytest
import torch

from llm_assets.training import checkpoints, optimizer_step, trainer
from llm_assets.training.checkpoints import CheckpointNotWritten
from llm_assets.training.device import TrainingDevice
from llm_assets.training.memory_plan import MemoryTooSmall
from llm_assets.training.optimizer_step import TrainingDiverged, TrainingOutOfMemory
from llm_assets.training.packs import read_rows
from llm_assets.training.trainer import train_adapter


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def train(tiny_base, dataset, tmp_path):
    """Train into `out-<name>`; returns the report, the published directory and the lines that were logged."""

    def run(name, config, **options):
        out, said = tmp_path / f"out-{name}", []
        out.mkdir(exist_ok=True)
        report = train_adapter(tiny_base, dataset, out, run.work(name), config, log=said.append, **options)
        return report, out, said

    run.work = lambda name: tmp_path / f"work-{name}"
    return run


@pytest.fixture
def at_step(monkeypatch):
    """Call something with each forward pass's inputs once the given optimiser step has begun, before it is computed."""
    from transformers.models.llama.modeling_llama import LlamaModel

    step = trainer.StepRunner.step
    plain = LlamaModel.forward
    now = {"step": 0}

    def remember(self, hf_trainer, model, packs):
        now["step"] = hf_trainer.state.global_step + 1
        try:
            return step(self, hf_trainer, model, packs)
        finally:
            now["step"] = 0

    def install(first, act):
        def forward(self, *args, **inputs):
            outputs = plain(self, *args, **inputs)
            return act(outputs, inputs) or outputs if now["step"] >= first else outputs

        monkeypatch.setattr(trainer.StepRunner, "step", remember)
        monkeypatch.setattr(LlamaModel, "forward", forward)

    return install


ALLOCATOR_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CUBLAS_FULL = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def full_above(tokens, error: Exception = ALLOCATOR_FULL):
    """Runs out of memory in a forward pass of more tokens than these."""

    def act(outputs, inputs):
        if inputs["input_ids"].numel() > tokens:
            raise type(error)(*error.args)

    return act


def test_a_step_out_of_memory_goes_on_in_smaller_passes_with_the_same_step(train, quick, at_step):
    settings = {"method": "lora", "compute_dtype": "float32", "batch_packs": "auto", "accumulation_steps": 4}
    whole, _, _ = train("whole", quick(**settings))
    at_step(3, full_above(600))
    cut, _, said = train("cut", quick(**settings))
    assert whole.plan.micro_batch_packs == 4
    assert (cut.plan.micro_batch_packs, cut.plan.accumulation_steps) == (2, 2)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert [line for line in said if "out of memory" in line] == [
        "step 3 was out of memory with 4 packs per forward pass; from here on 2 packs x 2 passes: the same step"
    ]


def test_a_continued_run_begins_with_the_plan_it_had(train, quick, at_step):
    config = quick(batch_packs="auto", accumulation_steps=4)
    at_step(1, full_above(300, CUBLAS_FULL))
    _, expected, _ = train("a", config)
    again, found, _ = train("a", config)
    assert again.plan.micro_batch_packs == 1
    assert digests(found) == digests(expected)


def test_memory_that_no_plan_fits_ends_the_run_with_the_ways_out(train, quick, at_step):
    at_step(2, full_above(10))
    with pytest.raises(TrainingOutOfMemory, match=r"Step 2 did not fit .*1 pack .*on: CUDA out of memory.*use method"):
        train("a", quick())


def test_what_does_not_fit_fails_in_the_dry_step_and_changes_no_byte(train, quick, monkeypatch):
    """The heaviest packs run before the first step; with dropout, a random state it used up would show."""
    config = quick(dropout=0.1)
    _, expected, _ = train("a", config)
    monkeypatch.setattr(trainer.StepRunner, "probe", lambda *_: None)
    _, found, _ = train("b", config)
    assert digests(found) == digests(expected)


def test_the_dry_step_takes_the_heaviest_packs(train, quick, monkeypatch):
    probed = []
    monkeypatch.setattr(trainer.StepRunner, "probe", lambda self, t, m, packs: probed.extend(packs))
    train("a", quick(max_steps=1))
    tokens = [sum(len(row.input_ids) for row in pack) for pack in probed]
    assert len(tokens) == 2
    assert tokens[0] >= tokens[1] >= 200


def test_the_dry_step_keeps_room_for_the_optimiser_until_that_has_its_moments(train, quick, monkeypatch):
    rooms, plain = [], optimizer_step.bytes_to_come

    def remember(plan, *where):
        rooms.append(plain(plan, *where) / plan.optimizer)
        return plain(plan, *where)

    monkeypatch.setattr(optimizer_step, "bytes_to_come", remember)
    for _ in range(2):
        train("a", quick(max_steps=2))
    assert rooms == [1, 0]


def test_a_device_too_small_is_refused_before_the_model_is_loaded(train, quick, monkeypatch):
    monkeypatch.setattr(trainer, "this_device", lambda: TrainingDevice("cpu", "small", 2**30))
    monkeypatch.setattr(trainer.adapted_model, "load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(MemoryTooSmall, match=r"the device has 1\.0 GiB"):
        train("a", quick())


def test_a_loss_that_is_not_a_number_stops_at_once_and_names_step_and_rows(train, quick, dataset, at_step):
    at_step(3, lambda outputs, inputs: outputs.last_hidden_state.mul_(float("nan")) is None)
    with pytest.raises(TrainingDiverged, match=r"Loss is nan at step 3, on rows (train-\d+, )+") as caught:
        train("a", quick())
    named = [word.strip(",") for word in str(caught.value).split() if word.startswith("train-")]
    assert {name.rstrip(".") for name in named} <= {row.row_id for row in read_rows(dataset, "train")}
    assert checkpoints.damage(train.work("a") / "checkpoint-2") is None


def test_the_update_of_a_loss_spike_is_left_out_when_asked(train, quick, at_step):
    settings = {"max_steps": 22, "batch_packs": 1, "evaluate_every_steps": 99, "learning_rate": 1e-3}
    once = iter([None])

    def spike(outputs, inputs):
        if next(once, 1) is None:
            outputs.last_hidden_state.data.mul_(30)

    at_step(21, spike)
    report, _, said = train("a", quick(**settings, skip_loss_spikes=2.0))
    assert report.skipped_steps == 1
    assert sum("is a spike" in line for line in said) == 1
    assert report.history[20]["loss"] > 2 * report.history[19]["loss"]
    assert report.history[21]["loss"] == pytest.approx(report.history[19]["loss"], rel=0.2)


@contextmanager
def files_no_larger_than(size):
    """The system refuses to write past this size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_checkpoint_before_and_a_later_run_continues_from_it(train, quick, monkeypatch):
    config = quick()
    _, expected, _ = train("whole", config)
    save = checkpoints.seal

    def seal_then_fill(checkpoint, run):
        save(checkpoint, run)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    monkeypatch.setattr("llm_assets.training.watch.seal", seal_then_fill)
    with files_no_larger_than(-1), pytest.raises(CheckpointNotWritten, match="it continues after step 2"):
        train("full", config)
    monkeypatch.undo()
    assert [path.name for path in train.work("full").glob("checkpoint-*")] == ["checkpoint-2"]
    _, found, said = train("full", config)
    assert any(line.startswith("continuing after step 2 of 4") for line in said)
    assert digests(found) == digests(expected)


@pytest.mark.parametrize("moment", ["while a checkpoint is written", "after it was sealed"])
def test_a_run_killed_at_any_moment_repeats_at_most_one_save_interval(train, quick, moment, monkeypatch):
    config = quick(save_every_steps=1, max_steps=3)
    _, expected, _ = train("whole", config)
    save = checkpoints.seal

    def kill(checkpoint, run):
        if moment == "after it was sealed":
            save(checkpoint, run)
        if checkpoint.name == "checkpoint-2":
            os.kill(os.getpid(), signal.SIGKILL)
        save(checkpoint, run)

    monkeypatch.setattr("llm_assets.training.watch.seal", kill)
    killed = multiprocessing.get_context("fork").Process(target=train, args=("killed", config))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    _, found, said = train("killed", config)
    done = 1 if moment == "while a checkpoint is written" else 2
    assert any(line.startswith(f"continuing after step {done} of 3") for line in said)
    assert any("checkpoint-2 was not finished" in line for line in said) == (done == 1)
    assert digests(found) == digests(expected)


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(train, quick):
    config = quick()
    _, expected, _ = train("a", config)
    damaged = train.work("a") / "checkpoint-4" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:100])
    _, found, said = train("a", config)
    assert "checkpoint-4 has other bytes in optimizer.pt than were written: falling back to the one before" in said
    assert any(line.startswith("continuing after step 2") for line in said)
    assert digests(found) == digests(expected)
