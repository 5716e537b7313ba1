"""A version under another name or in another registry.

Within one registry a copy is a second name for the same files. Into another one the files are stored once more, by hard
link or upload. Either way the copy carries the tags of the original, its gate's evidence among them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from llm_assets.registry.contents import MODEL_PATH
from llm_assets.registry.evidence import GATE_TAG, ROLLED_BACK_TAG
from llm_assets.registry.logged_model import copy_root
from llm_assets.registry.promote import PREVIOUS_TAG
from llm_assets.registry.registration import IDENTITY_TAG, Registered, Registration, ensure_name, find_version
from llm_assets.registry.tracking_store import TrackingStore, redacted
from llm_assets.registry.versions import RegisteredVersion

COPIED_FROM_TAG = "llm_assets.copied_from"
ORIGIN_GATE_TAG = "llm_assets.origin_gate"
STAYS = (GATE_TAG, ROLLED_BACK_TAG, PREVIOUS_TAG)  # what a version was in its environment


def copy_version(
    source: RegisteredVersion, origin: TrackingStore, name: str, target: TrackingStore, log: Callable[[str], None]
) -> Registered:
    """The same version under another name or in another registry, made if it is not there yet.

    Args:
        source: The version, with its files at hand.
        origin: Its registry.
        name: Registered name to copy it to.
        target: Registry to copy it to; may be the same.
        log: Receives progress.

    Raises:
        RegistryNameInvalid: the target takes no such name.
    """
    target.refuse_name(name)
    client, digest = target.client(), source.tags[IDENTITY_TAG]
    if existing := find_version(client, name, digest):
        log(f"{name} version {existing.version} already is {source.name} version {source.version}")
        return existing
    if target.registry_uri == origin.registry_uri:
        return _copy_within(source, client, name, digest)
    experiment = target.experiment_id(client, name.replace(".", "_"))
    work = Registration(client, experiment, name, digest, _tags(source, origin))
    return work.complete(
        {MODEL_PATH.split("/")[0]: source.directory / MODEL_PATH.split("/")[0]},
        lambda root, model, run_id: copy_root(source.directory, root, model, run_id),
        source.metadata,
        log,
    )


def _copy_within(source: RegisteredVersion, client: Any, name: str, digest: str) -> Registered:
    """A version on the same logged model, made with its final tags in one transaction.

    MLflow's `copy_model_version` would publish the original's passed gate first, for a crash to leave there.
    """
    original = client.get_model_version(source.name, source.version)
    ensure_name(client, name)
    made = client.create_model_version(
        name,
        source=f"models:/{source.model_id}",
        run_id=original.run_id,
        tags=_tags(source, None),
        description=original.description,
        model_id=source.model_id,
    )
    version = str(made.version)
    first = find_version(client, name, digest)
    if first and first.version != version:  # another process copied it at the same moment
        client.delete_model_version(name, version)
        return first
    return Registered(name, version, source.model_id, made.run_id, copied_bytes=0, created=True)


def _tags(source: RegisteredVersion, origin: TrackingStore | None) -> Mapping[str, str]:
    """The original's tags without what it was in its environment, and where it came from."""
    kept = {key: value for key, value in source.tags.items() if key not in STAYS and not key.startswith("mlflow.")}
    where = f" at {redacted(origin.registry_uri)}" if origin else ""
    gate = json.loads(source.tags.get(GATE_TAG, "{}"))
    return {
        **kept,
        COPIED_FROM_TAG: f"models:/{source.name}/{source.version}{where}",
        ORIGIN_GATE_TAG: json.dumps(gate, sort_keys=True),
    }
