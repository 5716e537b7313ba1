"""What the partitioned assets share: their partitions, and how one run publishes many of them.

A run gets a range of keys, so that one engine start serves all. Dagster gives a run's result one data version: it is
the digest of the keys' fingerprints, while each partition's own fingerprint is in its metadata, where the store looks.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from llm_assets.assets.conventions import artifact_metadata, check_event
from llm_assets.core import CheckResult
from llm_assets.inference.config import DailyPartitions, InferenceConfig
from llm_assets.resources.artifact_store import Artifact, digest


def partitioning(inference: InferenceConfig) -> dict[str, Any]:
    """Keyword arguments for `@dg.asset`: partitions, and runs of at most so many of them."""
    return {
        "partitions_def": partitions_of(inference),
        "backfill_policy": dg.BackfillPolicy.multi_run(inference.max_partitions_per_run),
    }


def partitions_of(inference: InferenceConfig) -> dg.PartitionsDefinition:
    """The partitions a lineage's YAML names."""
    if isinstance(inference.partitions, DailyPartitions):
        start = inference.partitions.start.isoformat()
        return dg.DailyPartitionsDefinition(start_date=start, timezone=inference.partitions.timezone)
    return dg.StaticPartitionsDefinition(list(inference.partitions.keys))


def published(
    context: dg.AssetExecutionContext,
    artifacts: Mapping[str, Artifact],
    metadata: Mapping[str, Mapping[str, Any]],
    checks: Mapping[str, CheckResult],
) -> dg.MaterializeResult:
    """The event of a run: each partition with its own artifact and metadata, the checks once.

    Args:
        context: Of the running asset.
        artifacts: Published artifact of every key of the run.
        metadata: What else each partition shows.
        checks: Verdicts over all of them.
    """
    for partition, artifact in artifacts.items():
        context.add_asset_metadata({**artifact_metadata(artifact), **metadata[partition]}, partition_key=partition)
    fingerprints = {partition: artifact.fingerprint for partition, artifact in artifacts.items()}
    only = next(iter(fingerprints.values())) if len(fingerprints) == 1 else digest(fingerprints)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(only),
        check_results=[check_event(name, result) for name, result in checks.items()],
    )
