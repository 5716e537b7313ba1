"""The demo lineage, materialized once per session the way a user does it, and killed twice on the way.

The first run dies by SIGKILL in the middle of training and the second in the middle of inference; the third finishes.
Every end-to-end test asserts on what that leaves behind, so surviving a crash costs the suite no second demo.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.resources.artifact_store import ArtifactStore

PROJECT = Path(__file__).parents[2]
MODEL = "sql_demo"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.end_to_end)


@dataclass
class Demo:
    """A materialized demo: where it lives, and what each `make demo` printed and took."""

    directory: Path
    outputs: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        ours = {
            "DAGSTER_HOME": str(self.directory),
            "LLM_ASSETS_HOME": str(self.directory / ".llm_assets"),
            "LLM_ASSETS_ENGINE_PYTHON": str(PROJECT / ".venv-vllm" / "bin" / "python"),
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
        }
        # MLflow writes the URI that an earlier test's client was given into this process's environment.
        inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
        return {**inherited, **ours}

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(root=str(self.directory / ".llm_assets" / "artifacts"))

    def run(self, *arguments: str, kill_after: str | None = None) -> int:
        """Run a demo module; with `kill_after`, SIGKILL it once a line matches that pattern."""
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        printed = []
        for line in process.stdout:
            sys.stdout.write(line)
            printed.append(line)
            if kill_after and re.search(kill_after, line):
                process.send_signal(signal.SIGKILL)
                break
        code = process.wait()
        self.outputs.append("".join(printed))
        self.seconds.append(time.monotonic() - started)
        return code


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    directory = tmp_path_factory.mktemp("demo")
    shutil.copy(PROJECT / "dagster.yaml", directory)
    demo = Demo(directory)
    assert demo.run("llm_assets.demo.rows") == 0, demo.outputs[-1]
    killed_in_training = demo.run("llm_assets.demo.run", kill_after=rf"{MODEL}/lora_adapter: step 1\d\d/")
    killed_in_inference = demo.run("llm_assets.demo.run", kill_after=rf"{MODEL}/inference_outputs: .*to answer")
    assert (killed_in_training, killed_in_inference) == (-signal.SIGKILL, -signal.SIGKILL)
    assert demo.run("llm_assets.demo.run") == 0, demo.outputs[-1]
    return demo


@pytest.fixture(scope="session")
def instance(demo: Demo) -> Iterator[dg.DagsterInstance]:
    here = Path.cwd()
    os.chdir(demo.directory)  # dagster.yaml's paths are relative to where Dagster is started
    try:
        with dg.DagsterInstance.from_config(str(demo.directory)) as instance:
            yield instance
    finally:
        os.chdir(here)
