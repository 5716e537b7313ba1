"""With a simulated clock: new content retrains once, equal content never, a new model re-answers, a red check stops."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from llm_assets.automation.conditions import nightly_backfill, rebuild_on_change

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHARDS = ["a", "b", "c"]
CHECK = dg.AssetCheckSpec("loss", asset="adapter", blocking=True)


def lineage() -> dg.Definitions:
    shards = dg.StaticPartitionsDefinition(SHARDS)
    nightly = nightly_backfill("0 2 * * *", "UTC")

    @dg.asset
    def raw() -> None: ...

    @dg.asset(deps=[raw], automation_condition=rebuild_on_change(), code_version="1", check_specs=[CHECK])
    def adapter(): ...

    @dg.asset(deps=[adapter], automation_condition=rebuild_on_change(), code_version="1")
    def champion() -> None: ...

    @dg.asset(partitions_def=shards, automation_condition=nightly)
    def inputs() -> None: ...

    @dg.asset(deps=[champion, inputs], partitions_def=shards, automation_condition=nightly)
    def outputs() -> None: ...

    return dg.Definitions(assets=[raw, adapter, champion, inputs, outputs])


class Clock:
    """Ticks the automation daemon by hand and plays the part of the runs it would launch."""

    def __init__(self) -> None:
        self.instance, self.defs = dg.DagsterInstance.ephemeral(), lineage()
        self.cursor, self.now = None, NOON

    def tick(self, hours: float = 0.1) -> dict[str, set[str | None]]:
        self.now += timedelta(hours=hours)
        result = dg.evaluate_automation_conditions(
            self.defs, self.instance, evaluation_time=self.now, cursor=self.cursor
        )
        self.cursor = result.cursor
        names = [key.to_user_string() for key in self.defs.resolve_asset_graph().get_all_asset_keys()]
        requested = {name: result.get_requested_partitions(dg.AssetKey(name)) for name in names}
        return {name: keys for name, keys in requested.items() if keys}

    def materialize(self, name: str, version: str, partition: str | None = None) -> None:
        tags = {"dagster/data_version": version}
        self.instance.report_runless_asset_event(dg.AssetMaterialization(name, partition=partition, tags=tags))

    def check(self, passed: bool) -> None:
        self.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("adapter"),
                check_name="loss",
                passed=passed,
                severity=dg.AssetCheckSeverity.ERROR,
                metadata={},
            )
        )


@pytest.fixture
def clock() -> Clock:
    """A lineage that is wholly materialized and green, after the daemon's first look."""
    clock = Clock()
    for name in ("raw", "adapter", "champion"):
        clock.materialize(name, "v1")
    for shard in SHARDS:
        clock.materialize("inputs", "v1", shard)
        clock.materialize("outputs", "v1", shard)
    clock.check(passed=True)
    clock.tick()
    return clock


def test_new_content_retrains_the_whole_chain_once(clock):
    clock.materialize("raw", "v2")

    assert clock.tick() == {"adapter": {None}, "champion": {None}}
    clock.materialize("adapter", "v2")
    clock.check(passed=True)
    clock.materialize("champion", "v2")
    assert clock.tick() == {}


def test_identical_content_never_retrains(clock):
    clock.materialize("raw", "v1")

    assert clock.tick() == {}
    assert clock.tick() == {}


def test_a_new_champion_answers_every_partition_again_at_night_and_once(clock):
    clock.materialize("champion", "v2")
    assert clock.tick() == {}  # not before the night
    assert clock.tick(hours=16) == {"outputs": set(SHARDS)}
    for shard in SHARDS:
        clock.materialize("outputs", "v2", shard)
    assert clock.tick() == {}
    assert clock.tick(hours=24) == {}


def test_a_missing_partition_is_filled_at_night():
    clock = Clock()
    for name in ("raw", "adapter", "champion"):
        clock.materialize(name, "v1")
    clock.check(passed=True)
    for shard in SHARDS[:2]:
        clock.materialize("inputs", "v1", shard)
        clock.materialize("outputs", "v1", shard)
    clock.tick()

    assert clock.tick(hours=16) == {"inputs": {"c"}, "outputs": {"c"}}


def test_a_red_blocking_check_stops_everything_below_it(clock):
    clock.materialize("adapter", "v2")
    clock.check(passed=False)
    assert clock.tick() == {}
    clock.check(passed=True)
    assert clock.tick() == {"champion": {None}}
