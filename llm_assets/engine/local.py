"""Run generation tasks from a plain script: the same worker process as in Dagster, its log lines on a callable."""

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from llm_assets.core import LLMAssetsError
from llm_assets.engine.device import device_memory_bytes
from llm_assets.engine.job import engine_python, worker_command, worker_environment, write_job
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask


class WorkerFailed(LLMAssetsError):
    """The worker process ended with an error; committed answers stay and are not redone."""


def run_tasks(
    python: Path | str | None,
    tasks: Sequence[GenerationTask],
    generation: GenerationConfig,
    engine: EngineConfig,
    log: Callable[[str], None],
) -> None:
    """Answer all tasks in one worker process; rows that already have an answer are skipped.

    Args:
        python: Python of the engine environment; None finds it as `engine_python` does.
        tasks: In the order they are served.
        generation: Sampling.
        engine: Engine sizes.
        log: Receives the worker's lines, standard error included.

    Raises:
        EngineEnvironmentMissing: there is no engine environment; raised before any work.
        WorkerFailed: the worker exited with an error; carries its last lines.
    """
    interpreter = engine_python(str(python) if python else None)
    if not tasks:
        return
    job = write_job(tasks, generation, engine, device_memory_bytes(), parent_pid=os.getpid())
    process = subprocess.Popen(
        worker_command(str(interpreter), job),
        env={**os.environ, **worker_environment(engine)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    try:
        for line in process.stdout or ():
            lines = [*lines[-30:], line.rstrip()]
            log(line.rstrip())
        returncode = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if returncode != 0:
        tail = "\n".join(lines)
        raise WorkerFailed(
            f"The worker ended with exit code {returncode}. Run again to continue. Its last lines:\n{tail}"
        )
