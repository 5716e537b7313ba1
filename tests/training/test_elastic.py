"""Two processes of a CPU, over gloo, on the real model; what a GPU and a cluster would change is where they meet."""

import importlib
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from llm_assets.training import TrainingConfig, elastic
from llm_assets.training.elastic import RankDied, processes_here, require_even_shares
from llm_assets.training.forking import STACK
from llm_assets.training.optimizer_step import TrainingDiverged
from llm_assets.training.rendezvous import Rendezvous, rendezvous


@pytest.fixture(autouse=True, scope="module")
def imported():
    """Processes are forked from this one then, without an import of their own."""
    for name in STACK:
        importlib.import_module(name)


@pytest.fixture
def train(tiny_base, dataset, tmp_path):
    def run(name, config, log=lambda _: None, **options):
        out, work = tmp_path / f"out-{name}", tmp_path / f"work-{name}"
        out.mkdir(exist_ok=True)
        return elastic.train(tiny_base, dataset, out, work, config, log=log, **options), out

    return run


@pytest.fixture
def settings(quick):
    def make(**changes):
        together = {"processes": 2, "batch_packs": 2, "accumulation_steps": 2, "report_to": ()}
        return quick(**{**together, **changes})

    return make


def losses(report):
    return [row["loss"] for row in report.history]


def ranks_of(parent: int) -> list[int]:
    """Processes forked from this one that look after nobody: the ranks, in the order they were started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in children)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_two_processes_have_the_loss_curve_of_one(train, settings, method):
    exact = {"method": method, "compute_dtype": "float32", "learning_rate": 1e-3}
    one, _ = train("one", settings(processes=1, **exact))
    lines, curves, evaluated = [], [], []
    two, out = train(
        "two", settings(**exact), log=lines.append, report=lambda step, found: curves.append(step),
        on_evaluation=lambda step, loss: evaluated.append(step),
    )  # fmt: skip
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert two.evaluation_loss == pytest.approx(one.evaluation_loss, abs=1e-4)
    assert (two.tokens, two.supervised_tokens, two.steps) == (one.tokens, one.supervised_tokens, one.steps)
    assert sum(line.startswith("base model: ") for line in lines) == 1
    assert evaluated == [2, 4]
    assert sorted(set(curves)) == [0, 1, 2, 3, 4]
    assert (out / "training.json").exists()


def test_a_run_whose_process_was_killed_says_its_last_lines_and_continues_to_the_same_losses(train, settings):
    whole, _ = train("whole", settings(max_steps=6))
    killed = threading.Event()

    def kill_the_second(step, loss):
        if step == 4 and not killed.is_set():
            killed.set()
            os.kill(ranks_of(os.getpid())[-1], signal.SIGKILL)
            time.sleep(1)

    with pytest.raises(RankDied, match=r"(?s)Process 1 of the run ended: killed by SIGKILL.*step 2/6: loss "):
        train("cut", settings(max_steps=6), on_evaluation=kill_the_second)
    assert not multiprocessing.active_children()
    lines = []
    continued, _ = train("cut", settings(max_steps=6), log=lines.append)
    assert any("continuing after step 2 of 6" in line or "continuing after step 4 of 6" in line for line in lines)
    assert losses(continued) == pytest.approx(losses(whole), abs=1e-6)


def join_as_second_machine(job_file: Path, port: str) -> None:
    os.environ.update(PET_NNODES="2", PET_NODE_RANK="1", PET_MASTER_ADDR="127.0.0.1", PET_MASTER_PORT=port)
    elastic.join_from(job_file)


def test_two_machines_meet_and_have_the_loss_curve_of_one(train, settings, tmp_path, monkeypatch):
    config = settings(processes=1, method="lora", compute_dtype="float32")
    one, _ = train("one", config)
    port = str(rendezvous({}).port)
    job_file = tmp_path / "work-two" / elastic.JOB
    second = multiprocessing.get_context("fork").Process(target=join_as_second_machine, args=(job_file, port))
    second.start()
    for name, value in {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    two, _ = train("two", config)
    second.join(timeout=60)
    assert second.exitcode == 0
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


def test_an_error_of_a_process_is_raised_as_its_own_class(train, settings):
    with pytest.raises(TrainingDiverged, match="step 1"):
        train("diverged", settings(alpha=10**38, warmup_share=0))


def test_what_the_step_raises_at_an_evaluation_ends_the_run(train, settings):
    class Enough(Exception):
        pass

    def stop(step, loss):
        raise Enough(f"after step {step}")

    with pytest.raises(Enough, match="after step 2"):
        train("stopped", settings(), on_evaluation=stop)


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
