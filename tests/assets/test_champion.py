"""Promotion in Dagster: the gate moves the alias, or says why it stays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from published_lineage import (
    PublishedLineage,
    empty_database,
    publish_lineage,
    standing_in,
    upstream_of_evaluation,
    write_evaluation,
)

from llm_assets.assets.champion import GATE, build_champion
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.registered_version import build_registered_version
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.promote import aliases
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

LINEAGE = Lineage("orders")
CONFIG = RegistryConfig(min_metrics={"exact_match": 0.2})
ROUND_TRIP = dg.AssetCheckKey(LINEAGE.key("registered_version"), "registry_round_trip")


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    return publish_lineage(tiny_base, tmp_path_factory.mktemp("lineage"))


class Rounds:
    """Registers and promotes one evaluation after the other on the same instance and database."""

    def __init__(self, root: Path, published: PublishedLineage) -> None:
        self.root, self.published = root, published
        self.instance = dg.DagsterInstance.ephemeral()
        (root / "mlflow.db").write_bytes(empty_database())
        self.tracking = MLflowTracking(
            tracking_uri=f"sqlite:///{root / 'mlflow.db'}", artifact_root=str(root / "mlartifacts")
        )

    def next(
        self, matches: Sequence[int], gate: Sequence[dg.AssetCheckKey] = (ROUND_TRIP,)
    ) -> dg.ExecuteInProcessResult:
        evaluation = write_evaluation(self.root / f"evaluation{len(list(self.root.iterdir()))}", matches)
        return self._run(
            [
                *upstream_of_evaluation(LINEAGE, self.published),
                standing_in(LINEAGE.key("evaluation"), evaluation),
                build_registered_version(LINEAGE, CONFIG, ["gguf_q8_0"], ()),
                build_champion(LINEAGE, CONFIG, gate),
            ]
        )

    def champion(self, gate: Sequence[dg.AssetCheckKey], version: int | None) -> dg.ExecuteInProcessResult:
        asset = build_champion(LINEAGE, CONFIG, gate)
        return self._run([asset], {"ops": {"orders__champion": {"config": {"version": version}}}} if version else None)

    def _run(
        self, assets: Sequence[dg.AssetsDefinition], run_config: Mapping[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            assets,
            run_config=run_config,
            instance=self.instance,
            resources={"store": ArtifactStore(root=str(self.root / "artifacts")), "tracking": self.tracking},
            raise_on_error=False,
        )

    def aliases(self) -> dict[str, str]:
        return dict(aliases("orders", self.tracking.store()))


def gate_of(run: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    return next(check for check in run.get_asset_check_evaluations() if check.check_name == GATE)


def test_the_alias_follows_better_versions_and_stays_when_one_is_worse(published: PublishedLineage, tmp_path: Path):
    rounds = Rounds(tmp_path, published)
    first = rounds.next([1] * 15 + [0] * 5)
    assert first.success and rounds.aliases()["champion"] == "1"

    better = rounds.next([1] * 20)
    assert better.success and rounds.aliases()["champion"] == "2"
    (event,) = better.asset_materializations_for_node("orders__champion")
    assert event.metadata["version"].value == 2 and event.metadata["previous_version"].value == "1"

    worse = rounds.next([1] * 10 + [0] * 10)
    assert worse.success
    assert not gate_of(worse).passed and "against version 2" in (gate_of(worse).description or "")
    (kept,) = worse.asset_materializations_for_node("orders__champion")
    assert kept.metadata["decision"].value == "version 3 refused" and kept.metadata["version"].value == 2
    assert kept.metadata["fingerprint"].value == event.metadata["fingerprint"].value  # nothing below becomes stale
    assert len(kept.metadata["versions"].value.records) == 3
    assert "data:image/png" in kept.metadata["score_by_version"].value
    assert rounds.aliases() == {"champion": "2", "challenger": "3"}


def test_going_back_is_one_materialization_with_a_version(published: PublishedLineage, tmp_path: Path):
    rounds = Rounds(tmp_path, published)
    rounds.next([1] * 15 + [0] * 5)
    rounds.next([1] * 20)
    unmet = dg.AssetCheckKey(LINEAGE.key("evaluation"), "beats_base")  # a red lineage must not keep anyone from it
    back = rounds.champion(gate=[unmet], version=1)
    assert back.success and rounds.aliases()["champion"] == "1"
    (event,) = back.asset_materializations_for_node("orders__champion")
    assert (event.metadata["version"].value, event.metadata["previous_version"].value) == (1, "2")
    assert event.metadata["decision"].value == "version 1 rolled back"

    rounds.tracking.store().client().set_registered_model_alias("orders", "champion", "2")  # a person, in MLflow
    forth = rounds.champion(gate=[unmet], version=None)
    assert forth.success and rounds.aliases()["champion"] == "2"
    (event,) = forth.asset_materializations_for_node("orders__champion")
    assert (event.metadata["version"].value, event.metadata["previous_version"].value) == (2, "1")


def test_unmet_checks_stop_whoever_asks_for_a_version_that_never_passed_a_gate(
    published: PublishedLineage, tmp_path: Path
):
    rounds, unmet = Rounds(tmp_path, published), dg.AssetCheckKey(LINEAGE.key("evaluation"), "beats_base")
    rounds.next([1] * 15 + [0] * 5)
    assert not rounds.next([1] * 20, gate=[unmet]).success
    assert not rounds.champion(gate=[unmet], version=2).success and rounds.aliases()["champion"] == "1"
    rounds.tracking.store().client().set_registered_model_alias("orders", "champion", "2")
    refused = rounds.champion(gate=[unmet], version=None)
    assert not refused.success and rounds.aliases()["champion"] == "1"
    assert "orders/evaluation:beats_base" in (gate_of(refused).description or "")


def test_a_version_below_its_floor_is_not_promoted(published: PublishedLineage, tmp_path: Path):
    rounds = Rounds(tmp_path, published)
    run = rounds.next([1] + [0] * 19)
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    assert "0.2 wanted" in str(failure.step_failure_data.error)
    assert "champion" not in rounds.aliases()
    assert not gate_of(run).passed and "0.2 wanted" in (gate_of(run).description or "")
    key = dg.AssetCheckKey(LINEAGE.key("champion"), GATE)
    record = rounds.instance.get_latest_asset_check_evaluation_record(key)
    assert record is not None and record.status.value == "FAILED" and record.run_id == run.run_id  # red in the UI


def test_an_unmet_check_is_named_and_the_alias_stays(published: PublishedLineage, tmp_path: Path):
    rounds = Rounds(tmp_path, published)
    run = rounds.next([1] * 20, gate=[dg.AssetCheckKey(LINEAGE.key("evaluation"), "beats_base")])
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    assert "orders/evaluation:beats_base" in str(failure.step_failure_data.error)
    assert not gate_of(run).passed and "orders/evaluation:beats_base" in (gate_of(run).description or "")
    assert "champion" not in rounds.aliases()
