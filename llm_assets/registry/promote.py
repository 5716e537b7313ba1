"""Move the alias of the version in use, and remember where it pointed, so that going back is one call."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import find

PREVIOUS_TAG = "llm_assets.previous_version"


@dataclass(frozen=True)
class Promotion:
    """Where an alias points now and where it pointed before; `previous_version` is None for the first."""

    name: str
    version: str
    alias: str
    previous_version: str | None

    def as_dict(self) -> dict[str, str | None]:
        """Plain JSON."""
        return asdict(self)


def promote(name: str, version: str, alias: str, store: TrackingStore, left: str | None = None) -> Promotion:
    """Point `alias` to `version`; doing it again changes nothing and reports the same previous version.

    Args:
        name: Registered name.
        version: Version number or alias.
        alias: Alias to move.
        store: The registry.
        left: Version the alias pointed to before a person moved it; None takes the alias' word.

    Raises:
        VersionUnknown: no such model or version.
    """
    client = store.client()
    target = find(client, name, version, store.tracking_uri)
    number, holder = str(target.version), left or current(name, alias, store)
    if holder == number:
        return Promotion(name, number, alias, target.tags.get(PREVIOUS_TAG) or None)
    client.set_model_version_tag(name, number, PREVIOUS_TAG, holder or "")
    client.set_registered_model_alias(name, alias, number)
    return Promotion(name, number, alias, holder)


def current(name: str, alias: str, store: TrackingStore) -> str | None:
    """The version an alias points to; None when the model or the alias does not exist."""
    return aliases(name, store).get(alias)


def aliases(name: str, store: TrackingStore) -> Mapping[str, str]:
    """Alias to version number of a registered model; empty when there is no such model."""
    found = store.client().search_registered_models(f"name = '{name}'")
    return {alias: str(version) for alias, version in found[0].aliases.items()} if found else {}


def point_challenger(name: str, version: str, challenger: str, champion: str, store: TrackingStore) -> None:
    """Point the challenger's alias to a version, unless that version is the one in use."""
    if current(name, champion, store) != version:
        store.client().set_registered_model_alias(name, challenger, version)
