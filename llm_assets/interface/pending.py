"""Which assets a call has to make: what is missing, stale or red, by the same staleness the UI shows."""

from collections.abc import Sequence

import dagster as dg

# Staleness as the UI computes it has no public entry point; these names are pinned with dagster's exact version.
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from llm_assets.assets.conventions import unmet_checks


def pending(instance: dg.DagsterInstance, graph: AssetGraph, assets: Sequence[dg.AssetKey]) -> list[dg.AssetKey]:
    """Those of `assets` that are missing, stale or red, and everything among them below those."""
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))

    def is_current(key: dg.AssetKey) -> bool:
        partitions = graph.get(key).partitions_def
        keys = partitions.get_partition_keys(dynamic_partitions_store=instance) if partitions else [None]
        return all(resolver.get_status(key, partition) is StaleStatus.FRESH for partition in keys)

    chosen: list[dg.AssetKey] = []
    for key in assets:
        red = unmet_checks(instance, graph.get_check_keys_for_assets({key}))
        if red or not is_current(key) or set(graph.get(key).parent_keys) & set(chosen):
            chosen.append(key)
    return chosen
