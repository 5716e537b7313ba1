"""Registration and promotion in Dagster, on an MLflow database of their own."""

import json
import shutil
from collections.abc import Sequence
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

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.registered_version import ROUND_TRIP, build_registered_version
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.promote import aliases
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

LINEAGE = Lineage("orders")
TRAINED = dg.AssetCheckKey(LINEAGE.key("lora_adapter"), "loss")


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    root = tmp_path_factory.mktemp("lineage")
    write_evaluation(root / "evaluation", [1] * 20)
    return publish_lineage(tiny_base, root)


class Home:
    """A store, a tracking database and an instance that outlive one run."""

    def __init__(self, root: Path, published: PublishedLineage) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        (root / "mlflow.db").write_bytes(empty_database())
        self.tracking = MLflowTracking(
            tracking_uri=f"sqlite:///{root / 'mlflow.db'}", artifact_root=str(root / "mlartifacts")
        )
        self.resources = {"store": ArtifactStore(root=str(root / "artifacts")), "tracking": self.tracking}
        evaluation = standing_in(LINEAGE.key("evaluation"), published.base.parent / "evaluation")
        self.run([*upstream_of_evaluation(LINEAGE, published), evaluation])

    def run(self, assets: Sequence[dg.AssetsDefinition]) -> dg.ExecuteInProcessResult:
        return dg.materialize(assets, instance=self.instance, resources=self.resources, raise_on_error=False)

    def register(self, config: RegistryConfig, gate: Sequence[dg.AssetCheckKey] = ()) -> dg.ExecuteInProcessResult:
        return self.run([build_registered_version(LINEAGE, config, ["gguf_q8_0"], gate)])


@pytest.fixture(scope="module")
def home(published: PublishedLineage, tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"), published)


def metadata_of(run: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = run.asset_materializations_for_node("orders__registered_version")
    return {name: value.value for name, value in event.metadata.items()}


def test_the_page_has_version_card_and_scoreboard_and_the_artifact_points_to_mlflow(home: Home):
    run = home.register(RegistryConfig())
    assert run.success
    metadata = metadata_of(run)
    record = json.loads((Path(metadata["path"]) / "registered.json").read_text())
    assert metadata["version"] == 1 and record["uri"] == metadata["mlflow_uri"] == "models:/orders/1"
    assert record["variants"]["gguf_q8_0"]["engine"] == "llama_cpp"
    assert metadata["copied_bytes"] == 0
    assert metadata["model_card"].startswith("# orders")
    (check,) = run.get_asset_check_evaluations()
    assert check.check_name == ROUND_TRIP and check.passed
    assert aliases("orders", home.tracking.store()) == {"challenger": "1"}


def test_materializing_again_keeps_version_and_data_version(home: Home):
    first, again = home.register(RegistryConfig()), home.register(RegistryConfig())
    assert metadata_of(first)["fingerprint"] == metadata_of(again)["fingerprint"]
    assert metadata_of(again)["version"] == 1 and not metadata_of(again)["created"]


def test_a_version_leads_back_to_its_dagster_run(home: Home):
    run = home.register(RegistryConfig(name="dev.sql.orders"))
    (version,) = home.tracking.store().client().search_model_versions("name = 'dev.sql.orders'")
    assert version.tags["dagster.run_id"] == run.run_id
    assert version.tags["dagster.asset"] == "orders/registered_version"


def test_a_check_that_never_ran_is_named_and_nothing_is_registered(home: Home):
    run = home.register(RegistryConfig(name="refused"), gate=[TRAINED])
    assert not run.success
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    assert "orders/lora_adapter:loss" in str(failure.step_failure_data.error)
    assert aliases("refused", home.tracking.store()) == {}
    assert not home.tracking.store().client().search_registered_models("name = 'refused'")


def test_only_chosen_variants_are_stored(home: Home):
    run = home.register(RegistryConfig(name="merged_only", variants=()))
    record = json.loads((Path(metadata_of(run)["path"]) / "registered.json").read_text())
    assert record["variants"] == {}


def test_an_evaluation_of_an_earlier_model_is_not_registered(home: Home, published: PublishedLineage, tmp_path: Path):
    def merged(directory: Path) -> dg.AssetsDefinition:
        return standing_in(LINEAGE.key("merged_model"), directory)

    evaluated = standing_in(
        LINEAGE.key("evaluation"), published.base.parent / "evaluation", [LINEAGE.key("merged_model")]
    )
    other = tmp_path / "merged"
    shutil.copytree(published.merged, other)
    (other / "merge.json").write_text("{}")
    home.run([merged(published.merged), evaluated])
    home.run([merged(other)])
    run = home.register(RegistryConfig(name="mixed"))
    (failure,) = [event for event in run.all_events if event.is_step_failure]
    told = str(failure.step_failure_data.error)
    assert "evaluation was made from merged_model" in told
    assert "Materialize evaluation and what follows it again" in told
    assert not home.tracking.store().client().search_registered_models("name = 'mixed'")

    home.run([merged(published.merged)])  # made again with the bytes that were evaluated
    assert home.register(RegistryConfig(name="mixed")).success
