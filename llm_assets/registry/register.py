"""Register a lineage's models as one version, whole or not at all, and only once.

A version carries the digest of its sources as a tag, by which the same sources find it again.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_assets.registry.contents import VersionSources, describe, identity
from llm_assets.registry.logged_model import write_code
from llm_assets.registry.registration import Registered, Registration, find_version
from llm_assets.registry.tracking_store import TrackingStore


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
    store.refuse_name(name)
    digest = identity(name, sources)
    if existing := find_version(client, name, digest):
        log(f"{name} version {existing.version} already holds these artifacts")
        return existing
    metadata = describe(sources, tags)
    work = Registration(client, store.experiment_id(client, sources.model), name, digest, tags)
    return work.complete(
        sources.placed(),
        lambda root, model, run_id: write_code(root, name, model, run_id, metadata),
        metadata,
        log,
    )


def write_record(out: Path, registered: Registered, metadata: Mapping[str, Any]) -> None:
    """Write `registered.json`: where the version is, what it holds and was made from, however it came about."""
    record = {
        "name": registered.name,
        "version": registered.version,
        "model_id": registered.model_id,
        "run_id": registered.run_id,
        "uri": registered.uri,
        "variants": dict(metadata["variants"]),
        "prompts": [prompt["uri"] for prompt in metadata["prompts"]],
        "fingerprints": dict(metadata["fingerprints"]),
    }
    (out / "registered.json").write_text(json.dumps(record, indent=1, sort_keys=True))
