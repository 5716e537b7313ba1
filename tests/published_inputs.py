"""Upstream assets of a test, published from directories, so that one asset can be materialized alone.

`from published_inputs import ...` works in every test, because `tests/` is where the root conftest lives.
"""

import shutil
from pathlib import Path

import dagster as dg

from llm_assets.assets.conventions import artifact_metadata
from llm_assets.resources.artifact_store import ArtifactStore


def publish_inputs(instance: dg.DagsterInstance, store: ArtifactStore, directories: dict[dg.AssetKey, Path]) -> None:
    """Publish each directory under its asset key and record the materialization."""
    for key, directory in directories.items():
        with store.staging() as staged:
            shutil.copytree(directory, staged, dirs_exist_ok=True)
            artifact = store.publish(key, staged)
        instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=artifact_metadata(artifact)))
