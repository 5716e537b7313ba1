"""Two processes of a CPU, over gloo, on the real model; what a GPU and a cluster would change is where they meet."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

from llm_assets.training import TrainingConfig, elastic, ranks
from llm_assets.training.elastic import RankDied, processes_here, require_even_shares
from llm_assets.training.optimizer_step import StepRunner, TrainingDiverged
from llm_assets.training.rendezvous import Rendezvous, rendezvous


def losses(report):
    return [row["loss"] for row in report.history]


def ranks_of(parent: int) -> list[int]:
    """Processes forked from this one that look after nobody: the ranks, in the order they were started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in children)


@pytest.fixture
def in_buckets(monkeypatch, tmp_path):
    """Whether each process's gradients lie in the buckets they are exchanged in, after each step."""
    plain = StepRunner.step

    def step(self, trainer, model, packs):
        loss = plain(self, trainer, model, packs)
        if ranks.world() > 1:
            storages = {value.grad.untyped_storage().data_ptr() for value in trainer.trained}
            (tmp_path / f"buckets-{ranks.rank()}").write_text(str(len(storages) < len(trainer.trained)))
        return loss

    monkeypatch.setattr(StepRunner, "step", step)
    return lambda: [path.read_text() for path in sorted(tmp_path.glob("buckets-*"))]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_two_processes_have_the_loss_curve_of_one(train_together, together, in_buckets, method):
    exact = {"method": method, "compute_dtype": "float32", "learning_rate": 1e-3}
    one, _ = train_together("one", together(processes=1, **exact))
    lines, curves, evaluated = [], [], []
    two, out = train_together(
        "two", together(**exact), log=lines.append, report=lambda step, found: curves.append(step),
        on_evaluation=lambda step, loss: evaluated.append(step),
    )  # fmt: skip
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert two.evaluation_loss == pytest.approx(one.evaluation_loss, abs=1e-4)
    assert (two.tokens, two.supervised_tokens, two.steps) == (one.tokens, one.supervised_tokens, one.steps)
    assert sum(line.startswith("base model: ") for line in lines) == 1
    assert evaluated == [2, 4]
    assert in_buckets() == ["True", "True"]
    assert sorted(set(curves)) == [0, 1, 2, 3, 4]
    assert (out / "training.json").exists()


def test_a_run_whose_process_was_killed_says_its_last_lines_and_continues_to_the_same_losses(train_together, together):
    whole, _ = train_together("whole", together(max_steps=6))
    killed = threading.Event()

    def kill_the_second(step, loss):
        if step == 4 and not killed.is_set():
            killed.set()
            os.kill(ranks_of(os.getpid())[-1], signal.SIGKILL)
            time.sleep(1)

    with pytest.raises(RankDied, match=r"(?s)Process 1 of the run ended: killed by SIGKILL.*step 2/6: loss "):
        train_together("cut", together(max_steps=6), on_evaluation=kill_the_second)
    assert not multiprocessing.active_children()
    lines = []
    continued, _ = train_together("cut", together(max_steps=6), log=lines.append)
    assert any("continuing after step 2 of 6" in line or "continuing after step 4 of 6" in line for line in lines)
    assert losses(continued) == pytest.approx(losses(whole), abs=1e-6)


def join_as_second_machine(job_file: Path, port: str) -> None:
    os.environ.update(PET_NNODES="2", PET_NODE_RANK="1", PET_MASTER_ADDR="127.0.0.1", PET_MASTER_PORT=port)
    elastic.join_from(job_file)


def test_two_machines_meet_and_have_the_loss_curve_of_one(train_together, together, tmp_path, monkeypatch):
    config = together(processes=1, method="lora", compute_dtype="float32")
    one, _ = train_together("one", config)
    port = str(rendezvous({}).port)
    job_file = tmp_path / "work-two" / elastic.JOB
    second = multiprocessing.get_context("fork").Process(target=join_as_second_machine, args=(job_file, port))
    second.start()
    for name, value in {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    two, _ = train_together("two", config)
    second.join(timeout=60)
    assert second.exitcode == 0
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


def test_a_step_out_of_memory_in_one_process_makes_all_of_them_go_on_in_smaller_passes(
    train_together, together, monkeypatch
):
    exact = {"compute_dtype": "float32", "method": "lora", "max_steps": 3, "save_every_steps": 1}
    whole, _ = train_together("whole", together(**exact))
    step, plain = StepRunner.step, LlamaModel.forward
    now = {"step": 0}

    def remember(self, trainer, model, packs):
        now["step"] = trainer.state.global_step + 1
        return step(self, trainer, model, packs)

    def forward(self, *args, **inputs):
        if ranks.rank() == 1 and now["step"] == 2 and torch.is_grad_enabled() and inputs["input_ids"].numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, *args, **inputs)

    monkeypatch.setattr(StepRunner, "step", remember)
    monkeypatch.setattr(LlamaModel, "forward", forward)
    lines = []
    cut, _ = train_together("cut", together(**exact), log=lines.append)
    assert (whole.plan.micro_batch_packs, cut.plan.micro_batch_packs, cut.plan.accumulation_steps) == (2, 1, 2)
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-5)
    assert [line for line in lines if "out of memory" in line] == [
        "step 2 was out of memory with 2 packs per forward pass; from here on 1 packs x 2 passes: the same step, from "
        "the last checkpoint"
    ]
    assert any("continuing after step 1 of 3" in line for line in lines)


def test_an_error_of_a_process_is_raised_as_its_own_class(train_together, together):
    with pytest.raises(TrainingDiverged, match="step 1"):
        train_together("diverged", together(alpha=10**38, warmup_share=0))


def test_what_the_step_raises_at_an_evaluation_ends_the_run(train_together, together):
    class Enough(Exception):
        pass

    def stop(step, loss):
        raise Enough(f"after step {step}")

    with pytest.raises(Enough, match="after step 2"):
        train_together("stopped", together(), on_evaluation=stop)


def test_packs_that_do_not_divide_are_refused_with_the_number_that_does():
    with pytest.raises(ValueError, match=r"2 processes cannot share the 3 packs .* Make it 4, or set .* divisor of 3"):
        require_even_shares(TrainingConfig(batch_packs=1, accumulation_steps=3), 2)


def test_one_process_is_started_per_device_and_never_more(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert processes_here(TrainingConfig(processes="auto")) == 2
    with pytest.raises(ValueError, match=r"processes is 4, and this machine shows 2 GPUs\. Set it to 2 or auto"):
        processes_here(TrainingConfig(processes=4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes_here(TrainingConfig(processes="auto")) == 1


def test_machines_meet_where_the_cluster_says():
    kubeflow = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "run-0", "PET_MASTER_PORT": "29400"}
    assert rendezvous(kubeflow) == Rendezvous(2, 1, "run-0", 29400)
    job = {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "run-master", "MASTER_PORT": "23456"}
    assert rendezvous(job) == Rendezvous(3, 0, "run-master", 23456)
    assert rendezvous({}).nodes == 1
    with pytest.raises(ValueError, match="PET_NNODES is 1:4"):
        rendezvous({"PET_NNODES": "1:4"})
    with pytest.raises(ValueError, match="asks for 2 machines and names no PET_MASTER_ADDR"):
        rendezvous({"PET_NNODES": "2"})
