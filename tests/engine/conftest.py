"""One worker process for the whole session answers every vLLM task of these tests; llama.cpp starts in a blink."""

import json
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import (
    EngineConfig,
    GenerationConfig,
    GenerationTask,
    read_answers,
    read_engine_report,
    write_requests,
)
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.gguf_model import write_gguf


@dataclass
class EngineRun:
    """What one worker process left behind: a row of each answer by task and id, reports, plans and log lines."""

    tasks: dict[str, GenerationTask]
    prompts: dict[str, list[int]]
    lines: list[str] = field(default_factory=list)

    def answers(self, task: str) -> dict[str, dict[str, Any]]:
        rows = read_answers(self.tasks[task].output).to_pylist()
        assert len({row["row_id"] for row in rows}) == len(rows)
        return {row["row_id"]: row for row in rows}

    def report(self, task: str) -> dict[str, Any]:
        return read_engine_report(self.tasks[task].output)

    def plan(self, task: str) -> dict[str, Any]:
        job = json.loads((next(iter(self.tasks.values())).output / "job.json").read_text())
        return next(entry["plan"] for entry in job["tasks"] if entry["name"] == task)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a directory with an f16 GGUF file and its tokenizer."""
    directory = tmp_path_factory.mktemp("tiny_gguf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_base / name, directory)
    write_gguf(tiny_base, directory, QuantizationConfig(scheme="gguf_f16"), lambda _: None)
    return directory


@pytest.fixture(scope="session")
def prompts() -> dict[str, list[int]]:
    """Forty prompts that share a prefix of 64 tokens, and three that no engine can serve."""
    rng = random.Random(0)
    prefix = [rng.randrange(3, 500) for _ in range(64)]
    rows = {f"row_{n}": prefix + [rng.randrange(3, 500) for _ in range(rng.randrange(1, 40))] for n in range(40)}
    return {**rows, "too_long": [5] * 600, "empty": [], "foreign_token": [100_000]}


@pytest.fixture(scope="session")
def engine_run(
    tiny_base: Path, tiny_gguf: Path, prompts: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> EngineRun:
    """Two tasks on one vLLM model, then one on its GGUF, answered by one process."""
    out = tmp_path_factory.mktemp("engine_run")
    write_requests(out / "requests.parquet", list(prompts), list(prompts.values()))
    models = {"first": tiny_base, "second": tiny_base, "gguf": tiny_gguf}
    tasks = {
        name: GenerationTask(
            name, model, "llama_cpp" if name == "gguf" else "vllm", out / "requests.parquet", out / name
        )
        for name, model in models.items()
    }
    run = EngineRun(tasks, prompts)
    generation = GenerationConfig(temperature=1.0, max_new_tokens=12, seed=7)
    engine = EngineConfig(max_num_seqs=8, micro_batch_rows=10, threads=1)
    run_tasks(None, list(tasks.values()), generation, engine, run.lines.append)
    return run
