"""Retention: old artifact versions are deleted by a job, never as a side effect of materializing something.

Kept are the newest versions of every asset, whatever the event log calls current, and whatever a registered model
version was made from.
"""

import json
from collections.abc import Iterable, Sequence

import dagster as dg

from llm_assets.automation.sensors import default_sensor_status
from llm_assets.resources.artifact_store import FINGERPRINT_KEY, ArtifactStore


def build_retention_job(model: str, keys: Sequence[dg.AssetKey], keep: int) -> dg.JobDefinition:
    """Delete all but the newest `keep` versions of each asset of a lineage, and log what was deleted."""

    @dg.op(name=f"{model}_prune_artifacts")
    def prune_artifacts(context: dg.OpExecutionContext, store: ArtifactStore) -> None:
        registered = registered_fingerprints(store, dg.AssetKey([model, "registered_version"]))
        for key in keys:
            for partition in store.partitions(key):
                protected = {*registered, *current_fingerprints(context.instance, key, partition)}
                for fingerprint in store.prune(key, keep, sorted(protected), partition):
                    context.log.info(f"Deleted {key.to_user_string()} {partition or ''} {fingerprint}")

    @dg.job(name=f"{model}_retention", description=f"Keeps the newest {keep} versions of every artifact of {model}.")
    def retention() -> None:
        prune_artifacts()

    return retention


def weekly(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Run retention early on Sundays, where automation runs."""
    running = default_sensor_status() is dg.DefaultSensorStatus.RUNNING
    status = dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
    return dg.ScheduleDefinition(job=job, cron_schedule="0 4 * * 0", default_status=status)


def current_fingerprints(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> set[str]:
    """The fingerprint the event log points to for an asset or one of its partitions."""
    where = dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
    events = (r.asset_materialization for r in instance.fetch_materializations(where, limit=1).records)
    return {str(e.metadata[FINGERPRINT_KEY].value) for e in events if e and FINGERPRINT_KEY in e.metadata}


def registered_fingerprints(store: ArtifactStore, key: dg.AssetKey) -> set[str]:
    """Fingerprints of everything any registered version of a lineage was made from."""
    found: set[str] = set()
    for path in store.versions(key):
        found |= {path.name, *_strings(json.loads((path / "registered.json").read_text()).get("fingerprints", {}))}
    return found


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, str):
        yield value
