"""The curves of a training run in MLflow: loss, learning rate, gradient norm, speed and memory, by step.

Points are sent together every few seconds by a thread of their own, so no step waits for a tracking server. A server
that fails in the middle of a run costs the points from there on and a line in the log, not the run: the same numbers
are in the published artifact.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.checkpoints import write_whole

SEND_EVERY_SECONDS = 10.0
POINTS_PER_REQUEST = 1000  # MLflow refuses larger batches: mlflow/utils/validation.py, MAX_METRICS_PER_BATCH
PARAMETER_CHARACTERS = 6000  # and longer values: MAX_PARAM_VAL_LENGTH
RUN_FILE = "mlflow_run.json"


class CurvesUnavailable(LLMAssetsError):
    """The tracking server did not answer before training began."""


@dataclass(frozen=True)
class CurvesTarget:
    """Where the curves of one run go.

    Attributes:
        tracking_uri: MLflow's tracking URI; a database must exist.
        experiment_id: Experiment the run belongs to.
        name: The run's name.
        tags: Tags of the run, such as the asset that made it.
        parent_run_id: Run it is nested under, such as a study's; None for a run of its own.
    """

    tracking_uri: str
    experiment_id: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parent_run_id: str | None = None


@contextmanager
def recorded(
    target: CurvesTarget | None, work: Path, settings: Mapping[str, Any], log: Callable[[str], None]
) -> Iterator["Curves"]:
    """Yield the recorder of a run; a run continued in the same work directory continues its MLflow run.

    Args:
        target: None records nothing.
        work: The training run's work directory.
        settings: Logged as the run's parameters.
        log: Receives a line with the run's id, and one if points are lost.

    Raises:
        CurvesUnavailable: the server cannot be reached before training begins.
    """
    if target is None:
        yield Curves(None, "", log)
        return
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=target.tracking_uri)
        run_id = _begin(client, target, work, settings)
    except Exception as error:  # of MLflow, its database or the network, in many classes
        raise CurvesUnavailable(
            f"MLflow did not take a new run: {str(error).splitlines()[0]}. Start the tracking server, correct "
            "MLFLOW_TRACKING_URI, or set training.report_to to a list without mlflow."
        ) from error
    curves, status = Curves(client, run_id, log), "FAILED"
    log(f"curves go to MLflow run {run_id}")
    try:
        yield curves
        status = "FINISHED"
    finally:
        curves.close(status)


class Curves:
    """Collects points and sends them to one MLflow run; sends nothing without a client."""

    def __init__(self, client: Any, run_id: str, log: Callable[[str], None]) -> None:
        self.run_id, self.lost_points = run_id, 0
        self._client, self._log = client, log
        self._points: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()
        self._sender = ThreadPoolExecutor(max_workers=1)

    def report(self, step: int, curves: Mapping[str, float]) -> None:
        """Add the points of one step."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        self._points += [(name, float(value), now, step) for name, value in curves.items()]
        if time.monotonic() - self._sent > SEND_EVERY_SECONDS:
            self._send()

    def close(self, status: str) -> None:
        """Send what is left and end the run.

        Args:
            status: FINISHED or FAILED.
        """
        if self._client is None:
            return
        self._send()
        self._sender.submit(self._guarded, lambda: self._client.set_terminated(self.run_id, status), 0)
        self._sender.shutdown()

    def _send(self) -> None:
        from mlflow.entities import Metric

        points, self._points, self._sent = self._points, [], time.monotonic()
        for start in range(0, len(points), POINTS_PER_REQUEST):
            some = [Metric(*point) for point in points[start : start + POINTS_PER_REQUEST]]
            request = partial(self._client.log_batch, self.run_id, metrics=some)
            self._sender.submit(self._guarded, request, len(some))

    def _guarded(self, request: Callable[[], Any], points: int) -> None:
        if self.lost_points:
            self.lost_points += points
            return
        try:
            request()
        except Exception as error:  # whatever a server or network raises: the run goes on
            self._log(f"MLflow did not answer, points from here on are lost: {str(error).splitlines()[0]}")
            self.lost_points = max(1, points)


def _begin(client: Any, target: CurvesTarget, work: Path, settings: Mapping[str, Any]) -> str:
    """The id of the run that this work directory has begun, or of a new one."""
    remembered = work / RUN_FILE
    if remembered.exists():
        run_id = json.loads(remembered.read_text())["run_id"]
        client.update_run(run_id, status="RUNNING")
        return run_id
    parent = {"mlflow.parentRunId": target.parent_run_id} if target.parent_run_id else {}
    run_id = client.create_run(target.experiment_id, run_name=target.name, tags={**target.tags, **parent}).info.run_id
    from mlflow.entities import Param

    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    client.log_batch(run_id, params=[Param(name, text[:PARAMETER_CHARACTERS]) for name, text in texts.items()])
    work.mkdir(parents=True, exist_ok=True)
    write_whole(remembered, {"run_id": run_id})
    return run_id
