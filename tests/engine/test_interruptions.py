"""Killing the worker, or its parent, at any moment costs at most a micro-batch of answers and loses no row."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_assets.engine.job import PROJECT_ROOT, engine_python, worker_command, worker_environment, write_job
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests

ROWS, MICRO_BATCH = 600, 25
GENERATION = GenerationConfig(max_new_tokens=64)
ENGINE = EngineConfig(micro_batch_rows=MICRO_BATCH, max_num_seqs=4, threads=1)
SCRIPT = """
import sys
from pathlib import Path
from llm_assets.engine import EngineConfig, GenerationConfig, GenerationTask
from llm_assets.engine.local import run_tasks
model, work = map(Path, sys.argv[1:])
task = GenerationTask("task", model, "llama_cpp", work / "requests.parquet", work / "answers")
engine = EngineConfig(micro_batch_rows=25, max_num_seqs=4, threads=1)
run_tasks(None, [task], GenerationConfig(max_new_tokens=64), engine, print)
"""


@pytest.fixture
def task(tiny_gguf, tmp_path):
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 500) for _ in range(rng.randrange(2, 40))] for _ in range(ROWS)]
    write_requests(tmp_path / "requests.parquet", [f"row_{n}" for n in range(ROWS)], prompts)
    return GenerationTask("task", tiny_gguf, "llama_cpp", tmp_path / "requests.parquet", tmp_path / "answers")


def start(task):
    job = write_job([task], GENERATION, ENGINE, 2**30, parent_pid=os.getpid())
    command = worker_command(str(engine_python()), job)
    return subprocess.Popen(command, env={**os.environ, **worker_environment(ENGINE)}, stdout=subprocess.DEVNULL)


def committed(task):
    return read_answers(task.output)["row_id"].to_pylist() if task.output.exists() and parts(task) else []


def parts(task):
    return sorted(task.output.glob("part-*.parquet"))


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


def test_a_killed_worker_resumes_without_losing_or_repeating_a_row(task):
    kept = []
    for kill in range(3):
        before = len(parts(task))
        worker = start(task)
        wait_for(lambda: len(parts(task)) >= before + 2 + kill)  # noqa: B023
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert set(kept) <= set(committed(task))
        kept = committed(task)
    assert len(kept) >= 9 * MICRO_BATCH
    (task.output / ".part-99999.parquet.partial").write_bytes(b"torn")

    lines = []
    run_tasks(None, [task], GENERATION, ENGINE, lines.append)

    answered = committed(task)
    assert len(answered) == len(set(answered)) == ROWS
    assert f"task: {ROWS - len(kept)} of {ROWS} rows to answer." in lines
    assert not list(task.output.glob(".*"))


def test_answers_after_a_kill_equal_those_of_an_undisturbed_run(task, tmp_path):
    worker = start(task)
    wait_for(lambda: len(parts(task)) >= 3)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    run_tasks(None, [task], GENERATION, ENGINE, lambda _: None)
    undisturbed = GenerationTask("task", task.model, "llama_cpp", task.requests, tmp_path / "undisturbed")
    run_tasks(None, [undisturbed], GENERATION, ENGINE, lambda _: None)

    first, second = (
        {row["row_id"]: row["completion"] for row in read_answers(t.output).to_pylist()} for t in (task, undisturbed)
    )
    same = sum(first[row_id] == second[row_id] for row_id in first)
    assert same >= 0.95 * ROWS  # another batch may round the last bit of a near-tie differently


def test_a_worker_told_to_stop_commits_what_is_finished(task):
    worker = start(task)
    wait_for(lambda: len(parts(task)) >= 2)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 130
    assert len(committed(task)) >= 2 * MICRO_BATCH


def test_a_finished_task_starts_no_engine(task):
    run_tasks(None, [task], GENERATION, ENGINE, lambda _: None)
    lines = []
    run_tasks(None, [task], GENERATION, ENGINE, lines.append)
    assert not any(line.startswith("Starting") for line in lines)
    assert len(committed(task)) == ROWS


def test_the_worker_dies_with_its_parent(task):
    arguments = [str(task.model), str(task.requests.parent)]
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: bool(parts(task)))
    (child,) = (int(pid) for pid in children(parent.pid))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not alive(child), seconds=10)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
