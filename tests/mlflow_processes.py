"""MLflow's own servers as processes on free ports, each ended with everything it started."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def tracking_server(home: Path) -> Iterator[str]:
    """A tracking server that hands artifacts through itself; yields its URI."""
    port = free_port()
    options = {
        "--backend-store-uri": f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination": str(home / "served"),
        "--port": str(port),
        "--workers": "1",
    }
    command = ["server", "--serve-artifacts", *(part for option in options.items() for part in option)]
    with _running(command, {}, home / "server.log", f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def model_server(tracking_uri: str, model_uri: str, home: Path) -> Iterator[str]:
    """`mlflow models serve`; yields the URL of its invocations."""
    port = free_port()
    command = ["models", "serve", "-m", model_uri, "--env-manager", "local", "--port", str(port), "-w", "1"]
    with _running(command, {"MLFLOW_TRACKING_URI": tracking_uri}, home / "model.log", f"http://127.0.0.1:{port}/ping"):
        yield f"http://127.0.0.1:{port}/invocations"


@contextmanager
def _running(command: Sequence[str], environment: Mapping[str, str], log: Path, health: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *command],
            env={**os.environ, **QUIET, **environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(process, health, log)
        yield
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], health: str, log: Path, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(health, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(f"{health} does not answer:\n{log.read_text()[-3000:]}")
