"""Read a registered version: its weights as local directories, its settings, everything it says about itself.

With a shared artifact location nothing is copied. From a server that proxies artifacts a version is downloaded once and
kept under its immutable model id.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.evaluation.scoreboard import MERGED
from llm_assets.registry.contents import MODEL_PATH
from llm_assets.registry.evidence import Evidence, NotPromoted, read_evidence
from llm_assets.registry.placement import local_directory
from llm_assets.registry.registration import MODEL_ID_TAG
from llm_assets.registry.tracking_store import SQLITE, TrackingStore, redacted

LACKED_BEFORE: dict[str, Any] = {  # by versions of format 1, which may still be in use
    "prompts": [],
    "scores": {},
    "dtypes": {"preferred": "unknown", "serving": {}, "kv_cache": {}},
}


class VersionUnknown(LLMAssetsError):
    """No such registered model, version or alias."""


class VariantUnknown(LLMAssetsError):
    """The version holds no such variant."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version on this machine.

    Attributes:
        name: Registered name.
        version: Version number.
        model_id: Logged model behind it; immutable, so a key for caches.
        directory: The whole logged model.
        generation: Settings its scoreboard was measured with.
        metadata: As `contents.describe` returned it.
        aliases: Aliases that point to it.
        tags: Its tags in the registry.
    """

    name: str
    version: str
    model_id: str
    directory: Path
    generation: Mapping[str, Any]
    metadata: Mapping[str, Any]
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def evidence(self) -> Evidence | None:
        """The gate's verdict on it; None when no gate has seen it."""
        return read_evidence(self.tags)

    def require_promoted(self) -> Evidence:
        """The passed gate of a version about to be used.

        Raises:
            NotPromoted: no gate has seen it, or the gate refused it.
        """
        evidence = self.evidence
        if evidence is None or not evidence.passed:
            said = evidence.summary if evidence else "No gate has seen it."
            raise NotPromoted(
                f"{self.name} version {self.version} has no passed gate on record. {said} Materialize champion; with "
                "the run config `version` to go back to an earlier one. To try this one, name its number where a "
                "version can be given."
            )
        return evidence

    @property
    def model_directory(self) -> Path:
        """The merged model, a plain Hugging Face directory."""
        return self.directory / MODEL_PATH

    def variant_directory(self, variant: str) -> Path:
        """Directory of `merged` or of a quantized variant.

        Raises:
            VariantUnknown: lists the variants there are.
        """
        if variant == MERGED:
            return self.model_directory
        variants = self.metadata["variants"]
        if variant not in variants:
            raise VariantUnknown(
                f"{self.name} version {self.version} has no variant {variant!r}. "
                f"It holds: {', '.join([MERGED, *variants])}. Add it to registry.variants and register again."
            )
        return self.directory / variants[variant]["path"]


def load_version(
    name: str, version_or_alias: str, tracking_uri: str | None = None, registry_uri: str | None = None
) -> RegisteredVersion:
    """Find a version by number or alias and make its files available.

    Args:
        name: Registered name.
        version_or_alias: `"3"` or `"champion"`.
        tracking_uri: MLflow's; None takes `MLFLOW_TRACKING_URI`, else the database in `LLM_ASSETS_HOME`.
        registry_uri: Where the name is registered, if elsewhere; None as in `TrackingStore.resolve`.

    Raises:
        VersionUnknown: lists the registered names, or the versions and aliases of this one.
        TrackingUnavailable: MLflow does not answer.
    """
    from mlflow.models import Model

    store = TrackingStore.resolve(tracking_uri, registry_uri=registry_uri)
    with store.reached():
        found = find(reader(store), name, version_or_alias, store.registry_uri)
    model_id = found.tags[MODEL_ID_TAG]
    directory = _directory(store, model_id)
    metadata = {**LACKED_BEFORE, **(Model.load(str(directory)).metadata or {})}
    generation, aliases, tags = metadata["generation"], tuple(found.aliases), dict(found.tags)
    return RegisteredVersion(name, str(found.version), model_id, directory, generation, metadata, aliases, tags)


def reader(store: TrackingStore) -> Any:
    """A client for looking something up; unlike `store.client()` it makes no database.

    Raises:
        VersionUnknown: there is no registry yet, or this process looks in the wrong place.
    """
    for uri in (store.tracking_uri, store.registry_uri):
        if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
            raise VersionUnknown(
                f"Nothing is registered at {redacted(uri)}: there is no such file. Set MLFLOW_TRACKING_URI, or "
                "LLM_ASSETS_HOME to where the lineage ran, or materialize registered_version first."
            )
    return store.client()


def find(client: Any, name: str, version_or_alias: str, tracking_uri: str) -> Any:
    """MLflow's record of a version; raises as `load_version`."""
    from mlflow.exceptions import MlflowException

    try:
        if version_or_alias.isdigit():
            return client.get_model_version(name, version_or_alias)
        return client.get_model_version_by_alias(name, version_or_alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise VersionUnknown(_what_exists(client, name, version_or_alias, tracking_uri)) from None


def _what_exists(client: Any, name: str, wanted: str, tracking_uri: str) -> str:
    where = redacted(tracking_uri)
    models = {model.name: model for model in client.search_registered_models()}
    if name not in models:
        known = ", ".join(sorted(models)) or "none"
        return f"No model {name!r} is registered at {where}. Registered: {known}. Materialize registered_version."
    versions = sorted(int(entry.version) for entry in client.search_model_versions(f"name = '{name}'"))
    aliases = ", ".join(f"{alias} -> {version}" for alias, version in sorted(models[name].aliases.items())) or "none"
    return (
        f"{name} has no version or alias {wanted!r} at {where}. Versions: {versions}; aliases: {aliases}. "
        "Ask for one of these, or materialize champion."
    )


def _directory(store: TrackingStore, model_id: str) -> Path:
    location = store.client().get_logged_model(model_id).artifact_location
    local = local_directory(location)
    if local is not None:
        return local
    cache = Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets")).absolute() / "registry_cache" / model_id
    if not cache.exists():
        _download(store, location, cache)
    return cache


def _download(store: TrackingStore, location: str, cache: Path) -> None:
    import mlflow

    cache.parent.mkdir(parents=True, exist_ok=True)
    unfinished = tempfile.mkdtemp(prefix=f"{cache.name}.", dir=cache.parent)
    try:
        found = mlflow.artifacts.download_artifacts(location, dst_path=unfinished, tracking_uri=store.tracking_uri)
        if not cache.exists():
            Path(found).replace(cache)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
