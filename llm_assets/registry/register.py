"""Register a lineage's models as one version, whole or not at all, and only once.

Everything is put into a logged model that nobody sees, and the version is created as the last step, with the digest of
its sources as a tag. The same sources find that tag again; work left by a crash is deleted, or used if it was complete.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.registry.contents import VersionSources, describe, identity
from llm_assets.registry.logged_model import LoggedModelDraft, version_params
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.placement import local_directory
from llm_assets.registry.tracking_store import TrackingStore

IDENTITY_TAG = "llm_assets.identity"
MODEL_ID_TAG = "llm_assets.model_id"
MAX_DESCRIPTION = 5000  # characters of the registry's description column


@dataclass(frozen=True)
class Registered:
    """A registered version and how it came about.

    Attributes:
        name: Registered name.
        version: Version number as MLflow writes it.
        model_id: Logged model behind it.
        run_id: MLflow run with its parameters and metrics.
        copied_bytes: Bytes stored a second time; 0 where files could be linked, or nothing was done.
        created: False when the same sources were registered before.
    """

    name: str
    version: str
    model_id: str
    run_id: str
    copied_bytes: int
    created: bool

    @property
    def uri(self) -> str:
        """MLflow's URI of the version."""
        return f"models:/{self.name}/{self.version}"


def register_version(
    name: str, sources: VersionSources, store: TrackingStore, tags: Mapping[str, str], log: Callable[[str], None]
) -> Registered:
    """Return the version made of these sources, creating it if there is none.

    Args:
        name: Registered name.
        sources: What it is made of.
        store: Tracking server or database.
        tags: Where it comes from, such as the Dagster run; not part of its identity.
        log: Receives progress.
    """
    client = store.client()
    digest = identity(name, sources)
    if existing := find_version(client, name, digest):
        log(f"{name} version {existing.version} already holds these artifacts")
        return existing
    work = _Registration(client, store.experiment_id(client, sources.model), name, digest, tags)
    metadata = describe(sources, tags)
    run_id, model_id, copied_bytes = work.run_id(), work.leftover(), 0
    if model_id:
        log(f"found {model_id}, whole but without a version")
    else:
        draft = work.draft(run_id, metadata)
        model_id, copied_bytes = draft.model.model_id, draft.fill(name, sources, metadata, log)
    version = work.create_version(model_id, run_id, card=write_model_card(name, metadata)[:MAX_DESCRIPTION])
    client.set_terminated(run_id)
    log(f"registered {name} version {version} ({copied_bytes:,} bytes copied)")
    return Registered(name, version, model_id, run_id, copied_bytes, created=True)


def find_version(client: Any, name: str, digest: str) -> Registered | None:
    """The lowest version of `name` with that identity."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{IDENTITY_TAG}` = '{digest}'")
    if not found:
        return None
    first = min(found, key=lambda entry: int(entry.version))
    model_id = first.tags[MODEL_ID_TAG]
    return Registered(name, str(first.version), model_id, first.run_id, copied_bytes=0, created=False)


def write_record(out: Path, registered: Registered, variants: Mapping[str, Any]) -> None:
    """Write `registered.json`: where the version is and what it holds; the same however it came about."""
    record = {
        "name": registered.name,
        "version": registered.version,
        "model_id": registered.model_id,
        "run_id": registered.run_id,
        "uri": registered.uri,
        "variants": dict(variants),
    }
    (out / "registered.json").write_text(json.dumps(record, indent=1, sort_keys=True))


@dataclass(frozen=True)
class _Registration:
    """One identity on its way into the registry."""

    client: Any
    experiment: str
    name: str
    digest: str
    tags: Mapping[str, str]

    def leftover(self) -> str | None:
        """The whole logged model a crash left without a version; unfinished ones are deleted with their files."""
        whole = None
        same = f"tags.`{IDENTITY_TAG}` = '{self.digest}'"
        for model in self.client.search_logged_models([self.experiment], filter_string=same):
            if model.status.name == "READY":
                whole = model.model_id
                continue
            directory = local_directory(model.artifact_location)
            if directory:
                shutil.rmtree(directory, ignore_errors=True)
            self.client.delete_logged_model(model.model_id)
        return whole

    def run_id(self) -> str:
        """The MLflow run of this registration, begun now or by an attempt that crashed."""
        same = f"tags.`{IDENTITY_TAG}` = '{self.digest}'"
        begun = self.client.search_runs([self.experiment], same, max_results=1)
        if begun:
            return begun[0].info.run_id
        tags = {**self.tags, IDENTITY_TAG: self.digest}
        return self.client.create_run(self.experiment, run_name=f"register {self.name}", tags=tags).info.run_id

    def draft(self, run_id: str, metadata: Mapping[str, Any]) -> LoggedModelDraft:
        """A pending logged model."""
        model = self.client.create_logged_model(
            self.experiment,
            name=self.name.replace(".", "_"),
            source_run_id=run_id,
            tags={IDENTITY_TAG: self.digest},
            params=version_params(metadata),
            model_type="llm",
        )
        return LoggedModelDraft(self.client, model, run_id)

    def create_version(self, model_id: str, run_id: str, card: str) -> str:
        """Create the version with all its tags in one transaction; of two made at the same time the later one goes."""
        self._ensure_name()
        created = self.client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={**self.tags, IDENTITY_TAG: self.digest, MODEL_ID_TAG: model_id},
            description=card,
            model_id=model_id,
        )
        version = str(created.version)
        first = find_version(self.client, self.name, self.digest)
        if first and first.version != version:
            self.client.delete_model_version(self.name, version)
            return first.version
        links = json.dumps([{"name": self.name, "version": version}])
        self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": links})  # for the UI and `mlflow gc`
        return version

    def _ensure_name(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
