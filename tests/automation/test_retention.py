"""Retention deletes old versions and nothing that is current or registered."""

import json

import dagster as dg

from llm_assets.automation.retention import build_retention_job
from llm_assets.resources.artifact_store import FINGERPRINT_KEY, ArtifactStore

ADAPTER, REGISTERED = dg.AssetKey(["m", "adapter"]), dg.AssetKey(["m", "registered_version"])


def publish(store: ArtifactStore, key: dg.AssetKey, name: str, text: str) -> str:
    with store.staging() as staged:
        (staged / name).write_text(text)
        return store.publish(key, staged).fingerprint


def test_old_versions_go_and_current_and_registered_ones_stay(tmp_path):
    store = ArtifactStore(root=str(tmp_path))
    registered, current, old, newest = (publish(store, ADAPTER, "w", text) for text in "abcd")
    version = json.dumps({"fingerprints": {"lora_adapter": registered}})
    publish(store, REGISTERED, "registered.json", version)
    with dg.instance_for_test() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization(ADAPTER, metadata={FINGERPRINT_KEY: current}))
        job = build_retention_job("m", [ADAPTER, REGISTERED], keep=1)
        result = job.execute_in_process(instance=instance, resources={"store": store})

    assert result.success
    assert {path.name for path in store.versions(ADAPTER)} == {registered, current, newest}
    assert old not in {path.name for path in store.versions(ADAPTER)}
