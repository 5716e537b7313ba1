"""The adapter asset on published inputs: trained with the study's parameters, checked, refused."""

import json
from pathlib import Path

import dagster as dg
import pytest
from published_inputs import publish_inputs
from tokenized_by_hand import write_dataset

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.lora_adapter import LOSS, PACK_ISOLATION, build_lora_adapter
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.training import TrainingConfig

LINEAGE = Lineage("tiny")
SETTINGS = {"max_steps": 6, "batch_packs": 2, "accumulation_steps": 1, "evaluate_every_steps": 3, "evaluation_rows": 8}


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    home = tmp_path_factory.mktemp("mlflow")
    return MLflowTracking(tracking_uri=f"sqlite:///{home / 'mlflow.db'}", artifact_root=str(home / "mlartifacts"))


@pytest.fixture
def materialize(tiny_base, tmp_path, tracking):
    store, instance = ArtifactStore(root=str(tmp_path / "store")), dg.DagsterInstance.ephemeral()
    study = tmp_path / "study"
    study.mkdir()
    inputs = {"tokenized_dataset": write_dataset(tiny_base, tmp_path / "dataset"), "base_model": tiny_base}

    def run(best, **settings):
        (study / "best.json").write_text(json.dumps(best))
        publish_inputs(
            instance, store, {LINEAGE.key(name): path for name, path in {**inputs, "hpo_study": study}.items()}
        )
        asset = build_lora_adapter(LINEAGE, TrainingConfig.model_validate({**SETTINGS, **settings}))
        resources = {"store": store, "tracking": tracking}
        result = dg.materialize([asset], resources=resources, instance=instance, raise_on_error=False)
        return result, store, instance

    return run


def verdicts(result):
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_the_adapter_is_trained_with_the_study_s_parameters_and_checked(materialize):
    best = {"parameters": {"learning_rate": 0.01, "rank": 2}, "value": 5.0}
    result, store, instance = materialize(best, report_to=[])
    assert result.success
    assert verdicts(result) == {LOSS: True, PACK_ISOLATION: True}
    adapter = store.open(instance, LINEAGE.key("lora_adapter")).path
    parameters = json.loads((adapter / "training.json").read_text())["parameters"]
    assert (parameters["rank"], parameters["learning_rate"]) == (2, 0.01)
    metadata = result.asset_materializations_for_node("tiny__lora_adapter")[0].metadata
    assert metadata["steps"].value == 6
    assert metadata["evaluation_loss"].value < metadata["base_evaluation_loss"].value
    assert metadata["planned_memory_bytes"].value > 0
    assert metadata["measured_memory_bytes"].value >= 0
    assert metadata["memory_plan"].value.records[0].data["part"] == "weights"
    assert metadata["loss_curve"].value.startswith("![Training and evaluation loss](data:image/png")


def test_a_loss_above_the_bound_blocks_the_run_and_stays_visible(materialize):
    result, _, _ = materialize({"parameters": {}, "value": 5.0}, max_evaluation_loss=0.1, report_to=[])
    assert not result.success
    assert verdicts(result) == {LOSS: False, PACK_ISOLATION: True}
    assert result.asset_materializations_for_node("tiny__lora_adapter")


def test_a_clean_run_leaves_its_curves_in_mlflow_and_no_workspace(materialize, tracking):
    result, store, _ = materialize({"parameters": {}, "value": 5.0}, learning_rate=0.01)
    assert not list(Path(store.root, ".work").rglob("checkpoint-*"))
    metadata = result.asset_materializations_for_node("tiny__lora_adapter")[0].metadata
    client = tracking.store().client()
    run = client.get_run(metadata["mlflow_run"].value)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny/lora_adapter")
    assert client.get_experiment(run.info.experiment_id).name == "tiny"
    assert run.data.tags["dagster.run_id"] == result.run_id
    assert run.data.params["learning_rate"] == "0.01"
    curves = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert curves.keys() >= {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes"}
    assert [point.step for point in curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in curves["evaluation_loss"]] == [0, 3, 6]
    assert curves["evaluation_loss"][-1].value == metadata["evaluation_loss"].value


def test_a_study_without_a_completed_trial_is_refused(materialize):
    result, _, _ = materialize({"parameters": {}, "value": None})
    assert not result.success
    failure = result.failure_data_for_node("tiny__lora_adapter")
    assert "No trial of hpo_study completed" in str(failure.error.cause or failure.error)
