"""Pushing the champion to a stand-in of the Hugging Face Hub, in Dagster."""

import json
from pathlib import Path

import dagster as dg
import pytest
from hub_stand_in import TOKEN, hub_stand_in
from published_inputs import publish_inputs
from published_lineage import empty_database, publish_lineage, write_evaluation

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.hub_repositories import build_hub_repositories
from llm_assets.core import CheckResult
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.evidence import Evidence, write_evidence
from llm_assets.registry.hub_config import HubConfig
from llm_assets.registry.register import register_version
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

LINEAGE = Lineage("orders")


def test_the_champion_is_pushed_once_and_only_past_its_gate(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "mlflow.db").write_bytes(empty_database())
    mlflow = TrackingStore(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "mlartifacts"))
    (tmp_path / "lineage").mkdir()
    made = publish_lineage(tiny_base, tmp_path / "lineage")
    evaluation = write_evaluation(tmp_path / "evaluation", [1] * 20)
    sources = VersionSources("orders", made.merged, {}, made.adapter, made.tokenized, evaluation)
    register_version("orders", sources, mlflow, {}, lambda _: None)
    (tmp_path / "champion").mkdir()
    (tmp_path / "champion/champion.json").write_text(json.dumps({"name": "orders", "version": "1"}))
    instance, store = dg.DagsterInstance.ephemeral(), ArtifactStore(root=str(tmp_path / "artifacts"))
    publish_inputs(instance, store, {LINEAGE.key("champion"): tmp_path / "champion"})
    tracking = MLflowTracking(tracking_uri=mlflow.tracking_uri, artifact_root=mlflow.artifact_root)

    def push() -> dg.ExecuteInProcessResult:
        asset = build_hub_repositories(LINEAGE, HubConfig(repo="acme/orders"), base="acme/base")
        resources = {"store": store, "tracking": tracking}
        return dg.materialize([asset], instance=instance, resources=resources, raise_on_error=False)

    with hub_stand_in() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert not push().success and hub.repositories == {}
        write_evidence(mlflow, "orders", "1", Evidence.of(CheckResult(True, "first"), None, [], {}))
        first, again = push(), push()
        assert first.success and list(hub.repositories) == ["acme/orders", "acme/orders-adapter"]
        events = [run.asset_materializations_for_node("orders__hub_repositories")[0] for run in (first, again)]
        assert events[0].metadata["uploaded_bytes"].value > 500_000
        assert events[1].metadata["uploaded_files"].value == 0
        assert events[0].metadata["fingerprint"].value == events[1].metadata["fingerprint"].value
    assert TOKEN not in "".join(str(entry) for run in (first, again) for entry in instance.all_logs(run.run_id))
