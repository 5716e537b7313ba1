"""Where MLflow keeps runs, models and versions: one local database by default, any tracking server by its URI.

Two processes that touch a new SQLite database together break it for good, so it is made once, under a lock, beside its
final name. The cost is about six seconds on the first use of a fresh home.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError

SQLITE = "sqlite:///"
LOGIN = re.compile(r"//(?:[^/@\s:]+:(?!\d+(?:[/?,]|$))\S*|[^/@\s]*)@")  # a password may hold / and @; a port is none
SECRET_VALUE = re.compile(
    r"([?&][^=&\s]*(?:sig|token|secret|passw|pwd|credential|(?<!ssl)key)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)


class TrackingUnavailable(LLMAssetsError):
    """The tracking database cannot be made."""


class RegistryNameInvalid(LLMAssetsError):
    """The registry cannot hold such a name."""


@dataclass(frozen=True)
class TrackingStore:
    """A tracking URI, a registry URI, and where artifacts go when no server decides it.

    Attributes:
        tracking_uri: `sqlite:///…`, `postgresql://…` or `http(s)://…`.
        artifact_root: Directory or URI below which experiments without a server keep their artifacts.
        separate_registry_uri: Where names, versions and prompts are when that is elsewhere, such as a Unity Catalog
            (`databricks-uc`); None keeps them with the runs.
    """

    tracking_uri: str
    artifact_root: str
    separate_registry_uri: str | None = None

    @classmethod
    def resolve(
        cls, tracking_uri: str | None = None, artifact_root: str | None = None, registry_uri: str | None = None
    ) -> "TrackingStore":
        """Fill what is not given from the environment.

        Args:
            tracking_uri: None takes `MLFLOW_TRACKING_URI`, else the database in `LLM_ASSETS_HOME` (`.llm_assets`).
            artifact_root: None takes `mlartifacts` in `LLM_ASSETS_HOME`.
            registry_uri: None takes `MLFLOW_REGISTRY_URI` unless `tracking_uri` is given, else the tracking URI.
        """
        home = Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets")).absolute()
        registry_uri = registry_uri or (None if tracking_uri else os.environ.get("MLFLOW_REGISTRY_URI"))
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{home / 'mlflow.db'}"
        return cls(uri, artifact_root or str(home / "mlartifacts"), None if registry_uri == uri else registry_uri)

    @property
    def registry_uri(self) -> str:
        """Where names, versions, aliases and prompts are."""
        return self.separate_registry_uri or self.tracking_uri

    def client(self) -> Any:
        """An `MlflowClient` on a database that is ready for use; telemetry is off.

        Raises:
            TrackingUnavailable: a new database could not be made; carries MLflow's last line.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        for uri in {self.tracking_uri, self.registry_uri}:
            if uri.startswith(SQLITE):
                create_database(Path(uri.removeprefix(SQLITE)))
        import mlflow

        meant = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
        mlflow.set_tracking_uri(self.tracking_uri)  # a direct database store resolves models:/ URIs by this one
        mlflow.set_registry_uri(self.registry_uri)
        for name, value in meant.items():  # MLflow sets them too, and the next store would take them for the user's
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        client = mlflow.MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.registry_uri)
        secret = any(redacted(uri) != uri for uri in (self.tracking_uri, self.registry_uri))
        return DiscreetClient(client) if secret else client

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Turn whatever MLflow says of a server that is down, or of a URI it does not know, into one readable error.

        Raises:
            TrackingUnavailable: carries MLflow's first line and what to correct.
        """
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, ImportError) as error:  # a database's driver may not be installed
            where = " and ".join(dict.fromkeys((redacted(self.tracking_uri), redacted(self.registry_uri))))
            raise TrackingUnavailable(
                f"MLflow at {where} does not answer: {redacted(str(error)).splitlines()[0]:.300} Start the server, or "
                "correct MLFLOW_TRACKING_URI (and MLFLOW_REGISTRY_URI); `llm-assets doctor` tries them."
            ) from None

    def refuse_name(self, name: str) -> None:
        """Refuse a registered name that this registry cannot hold.

        Raises:
            RegistryNameInvalid: a Unity Catalog takes only `catalog.schema.model`.
        """
        if self.registry_uri.startswith(("databricks-uc", "uc:")) and name.count(".") != 2:
            raise RegistryNameInvalid(
                f"{name!r} cannot be registered in the Unity Catalog at {redacted(self.registry_uri)}: it takes "
                f"catalog.schema.model. Set registry.name, for example to main.default.{name.rpartition('.')[2]}."
            )

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


class DiscreetClient:
    """An `MlflowClient` whose errors do not repeat the password in its URI, which every log and event would keep."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        """A method of the client; its errors lose the user and password of any URI."""
        from mlflow.exceptions import MlflowException

        found = getattr(self._client, name)
        if not callable(found):
            return found

        def called(*arguments: Any, **named: Any) -> Any:
            try:
                return found(*arguments, **named)
            except MlflowException as error:
                error.message = redacted(error.message)
                error.args = (error.message,)
                raise error from None

        return called


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


def redacted(text: str) -> str:
    """A URI, or a message around one, without users, passwords and signatures; in the path or in the query."""
    return SECRET_VALUE.sub(r"\1…", LOGIN.sub("//", text))


def _as_uri(location: str) -> str:
    return location if "://" in location else Path(location).absolute().as_uri()
