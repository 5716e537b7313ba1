"""Answering the demo's questions: the worker with one vLLM engine, against transformers' `generate`.

Every side is a fresh process that loads the same model and reads the same token ids; wall seconds. Without start-up is
what a large partition approaches; with start-up is what a small one costs. One answer at a time takes long, so that
side answers fewer rows, and its rate with start-up is computed for the full number.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._demo import trained_base, write_random_base
from benchmarks._harness import Row, interleaved, main
from llm_assets.data.formats import TextToSQLFormat, prompt_messages
from llm_assets.data.rendering import Renderer
from llm_assets.demo.rows import QUESTIONS_PER_PARTITION, questions
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import (
    EngineConfig,
    GenerationConfig,
    GenerationTask,
    read_answers,
    read_engine_report,
    write_requests,
)

BATCHED, SINGLE = "transformers `generate`, batches of 64", "transformers `generate`, one row at a time"


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Rows per second of the worker, of batches and of single rows, without and with start-up."""
    base = write_random_base(scratch) if quick else trained_base()
    partitions, single_rows, new_tokens = (1, 3, 16) if quick else (12, 90, 96)
    rows = partitions * QUESTIONS_PER_PARTITION
    requests = write_questions(base, scratch, partitions)
    sides = {
        "ours": lambda: with_worker(base, requests, scratch, rows, new_tokens),
        BATCHED: lambda: with_transformers(base, requests, 64, new_tokens, rows, of=rows),
        SINGLE: lambda: with_transformers(base, requests, 1, new_tokens, single_rows, of=rows),
    }
    found = interleaved(sides, rounds=1 if quick else 2)
    goals = {
        "rows_per_second": ("without start-up", {BATCHED: 1.5, SINGLE: 5.0}),
        "rows_per_second_in_all": (f"{rows} rows with start-up", {BATCHED: 0.5, SINGLE: 1.0}),
    }
    return [
        Row(f"Inference, {what}", found["ours"][metric], found[name][metric], name, "rows/s", "higher", goal)
        for metric, (what, bounds) in goals.items()
        for name, goal in bounds.items()
    ]


def write_questions(base: Path, scratch: Path, partitions: int) -> Path:
    """Requests file of the demo's questions, those of its own partitions first."""
    renderer, format = Renderer.from_directory(base), TextToSQLFormat()
    asked: list[Mapping[str, Any]] = []
    for number in range(partitions):
        asked += questions(number * QUESTIONS_PER_PARTITION).to_pylist()
    prompts = [renderer.encode_prompt(prompt_messages(row, format)) for row in asked]
    write_requests(scratch / "requests.parquet", [f"row_{n}" for n in range(len(asked))], prompts)
    return scratch / "requests.parquet"


def with_worker(base: Path, requests: Path, scratch: Path, rows: int, max_new_tokens: int) -> dict[str, float]:
    """One worker process, as `inference_outputs` starts it."""
    output = scratch / f"answers_{len(list(scratch.glob('answers_*')))}"
    task = GenerationTask("benchmark", base, "vllm", requests, output)
    began = time.perf_counter()
    run_tasks(None, [task], GenerationConfig(max_new_tokens=max_new_tokens), EngineConfig(), log=lambda _: None)
    in_all = time.perf_counter() - began
    failed = [error for error in read_answers(output)["error"].to_pylist() if error]
    if failed or read_answers(output).num_rows != rows:
        raise SystemExit(f"The worker did not answer every row: {failed[:1]}")
    report = read_engine_report(output)
    tokens = float(report["completion_tokens"])
    return _rates(rows, report["seconds"], in_all) | {"completion_tokens": tokens}


def with_transformers(
    base: Path, requests: Path, batch_rows: int, max_new_tokens: int, rows: int, *, of: int
) -> dict[str, float]:
    """One process that answers the first `rows` rows; its rate with start-up is for `of` rows."""
    arguments = [str(value) for value in (base, requests, batch_rows, max_new_tokens, rows)]
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks._generate_child", *arguments]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    start_up = time.perf_counter() - began - (child := json.loads(printed.splitlines()[-1]))["seconds"]
    seconds = child["seconds"] * of / rows
    return _rates(of, seconds, start_up + seconds) | {"completion_tokens": child["completion_tokens"] * of / rows}


def _rates(rows: int, seconds: float, seconds_in_all: float) -> dict[str, float]:
    return {"rows_per_second": rows / seconds, "rows_per_second_in_all": rows / seconds_in_all}


if __name__ == "__main__":
    main("inference", measure)
