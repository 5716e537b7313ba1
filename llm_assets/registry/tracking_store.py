"""Where MLflow keeps runs, models and versions: one local database by default, any tracking server by its URI.

Two processes that touch a new SQLite database together break it for good, so it is made once, under a lock, beside its
final name. The cost is about six seconds on the first use of a fresh home.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError

SQLITE = "sqlite:///"


class TrackingUnavailable(LLMAssetsError):
    """The tracking database cannot be made."""


@dataclass(frozen=True)
class TrackingStore:
    """A tracking URI, and where artifacts go when no server decides it.

    Attributes:
        tracking_uri: `sqlite:///…`, `postgresql://…` or `http(s)://…`.
        artifact_root: Directory or URI below which experiments without a server keep their artifacts.
    """

    tracking_uri: str
    artifact_root: str

    @classmethod
    def resolve(cls, tracking_uri: str | None = None, artifact_root: str | None = None) -> "TrackingStore":
        """Fill what is not given from `MLFLOW_TRACKING_URI` and `LLM_ASSETS_HOME` (default `.llm_assets`)."""
        home = Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets")).absolute()
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{home / 'mlflow.db'}"
        return cls(uri, artifact_root or str(home / "mlartifacts"))

    def client(self) -> Any:
        """An `MlflowClient` on a database that is ready for use; telemetry is off.

        Raises:
            TrackingUnavailable: a new database could not be made; carries MLflow's last line.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        if self.tracking_uri.startswith(SQLITE):
            create_database(Path(self.tracking_uri.removeprefix(SQLITE)))
        import mlflow

        mlflow.set_tracking_uri(
            self.tracking_uri
        )  # a direct database store resolves models:/ URIs by the process-wide one
        mlflow.set_registry_uri(self.tracking_uri)
        return mlflow.MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def experiment_id(self, client: Any, name: str) -> str:
        """The experiment of that name, made on first use."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        served = self.tracking_uri.startswith("http")
        location = None if served else _as_uri(f"{self.artifact_root}/{name}")
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:  # another process made it between the two calls
            return client.get_experiment_by_name(name).experiment_id


def create_database(path: Path) -> None:
    """Make an MLflow SQLite database unless it exists; safe to call from many processes at once.

    Raises:
        TrackingUnavailable: the directory cannot be written, or MLflow's migrations failed.
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _migrate(path.with_name(f"{path.name}.new")).replace(path)
    except Exception as error:
        raise TrackingUnavailable(
            f"MLflow could not make {path}: {error}. Point LLM_ASSETS_HOME at a writable disk, or MLFLOW_TRACKING_URI "
            "at a tracking server."
        ) from error


def _migrate(unfinished: Path) -> Path:
    from mlflow import MlflowClient

    unfinished.unlink(missing_ok=True)  # of a process that died here
    MlflowClient(tracking_uri=f"{SQLITE}{unfinished}").search_experiments(
        max_results=1
    )  # the first use makes the tables
    return unfinished


def _as_uri(location: str) -> str:
    return location if "://" in location else Path(location).absolute().as_uri()
