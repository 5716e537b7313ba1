"""A job is everything the worker process needs, as one JSON file beside the first task's answers.

The worker runs in another environment and knows none of this package, so sizes are planned here and handed over as
plain numbers. A file rather than arguments or environment variables: those are limited to about 128 kB, which a year of
daily partitions exceeds.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.engine.architecture import read_architecture
from llm_assets.engine.planner import EnginePlan, plan_engine
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask

PROJECT_ROOT = Path(__file__).resolve().parents[2]
WORKER_MODULE = "llm_assets.workers.generate"
ENGINE_PYTHON_VARIABLE = "LLM_ASSETS_ENGINE_PYTHON"


class EngineEnvironmentMissing(LLMAssetsError):
    """There is no Python with an inference engine to start the worker with."""


def engine_python(configured: str | None = None) -> Path:
    """The engine environment's Python: the given one, else `LLM_ASSETS_ENGINE_PYTHON`, else `.venv-vllm`.

    Raises:
        EngineEnvironmentMissing: that file does not exist.
    """
    chosen = configured or os.environ.get(ENGINE_PYTHON_VARIABLE) or str(PROJECT_ROOT / ".venv-vllm/bin/python")
    if not Path(chosen).exists():
        raise EngineEnvironmentMissing(
            f"No engine environment at {chosen}. Run `make engine-env`, or set {ENGINE_PYTHON_VARIABLE} to the Python "
            "of an environment that has vLLM."
        )
    return Path(chosen)


def write_job(
    tasks: Sequence[GenerationTask],
    generation: GenerationConfig,
    engine: EngineConfig,
    device_memory_bytes: int | None,
    parent_pid: int | None,
) -> Path:
    """Plan every model's engine over all its requests and write the job file; returns its path.

    Args:
        tasks: At least one; consecutive tasks on the same model share one engine.
        generation: Sampling, the same for every task.
        engine: Sizes set by hand.
        device_memory_bytes: What the planner may count on; None leaves the KV cache to the engine.
        parent_pid: The worker ends when this process does; None where it runs elsewhere.
    """
    plans = _plans(tasks, generation, engine, engine.device_memory_bytes or device_memory_bytes)
    job = {
        "parent_pid": parent_pid,
        "tasks": [_task_json(task, plans[task.model]) for task in tasks],
        "generation": generation.model_dump(mode="json"),
        "engine": engine.model_dump(mode="json"),
    }
    path = tasks[0].output / "job.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(job, indent=1))
    return path


def worker_command(python: str, job: Path) -> list[str]:
    """Command line of the worker."""
    return [python, "-m", WORKER_MODULE, str(job)]


def worker_environment(engine: EngineConfig) -> dict[str, str]:
    """Variables of the worker process, on top of the inherited ones.

    One process holds the whole engine: a killed multi-process vLLM leaves its children running. Threads are not pinned
    to cores, because every engine would pin itself to the same ones. libgomp must not spin: two spinning threads on a
    busy two-core machine are forty times slower.
    """
    threads = engine.threads or int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    return {
        "PYTHONPATH": str(PROJECT_ROOT),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _plans(
    tasks: Sequence[GenerationTask], generation: GenerationConfig, engine: EngineConfig, memory_bytes: int | None
) -> dict[Path, EnginePlan]:
    plans = {}
    for model in dict.fromkeys(task.model for task in tasks):
        same_model = [task for task in tasks if task.model == model]
        lengths = [length for task in same_model for length in _prompt_lengths(task.requests)]
        architecture = read_architecture(model, engine.dtype)
        plans[model] = plan_engine(
            architecture,
            lengths,
            max_new_tokens=generation.max_new_tokens,
            engine=same_model[0].engine,
            config=engine,
            device_memory_bytes=memory_bytes,
        )
    return plans


def _prompt_lengths(requests: Path) -> list[int]:
    prompts = pq.read_table(requests, columns=["prompt_token_ids"])[0]
    return [length for chunk in prompts.chunks for length in chunk.value_lengths().to_pylist()]


def _task_json(task: GenerationTask, plan: EnginePlan) -> dict[str, Any]:
    paths = {name: str(getattr(task, name).absolute()) for name in ("model", "requests", "output")}
    return {"name": task.name, "engine": task.engine, **paths, "plan": plan.as_json()}
