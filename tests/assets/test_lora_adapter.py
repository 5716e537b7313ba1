"""The adapter asset on published inputs: trained with the study's parameters, checked, refused."""

import json

import dagster as dg
import pytest
from published_inputs import publish_inputs
from tokenized_by_hand import write_dataset

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.lora_adapter import LOSS, PACK_ISOLATION, build_lora_adapter
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training import TrainingConfig

LINEAGE = Lineage("tiny")
SETTINGS = {"max_steps": 6, "batch_packs": 2, "accumulation_steps": 1, "evaluate_every_steps": 3, "evaluation_rows": 8}


@pytest.fixture
def materialize(tiny_base, tmp_path):
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
        result = dg.materialize([asset], resources={"store": store}, instance=instance, raise_on_error=False)
        return result, store, instance

    return run


def verdicts(result):
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_the_adapter_is_trained_with_the_study_s_parameters_and_checked(materialize):
    result, store, instance = materialize({"parameters": {"learning_rate": 0.01, "rank": 2}, "value": 5.0})
    assert result.success
    assert verdicts(result) == {LOSS: True, PACK_ISOLATION: True}
    adapter = store.open(instance, LINEAGE.key("lora_adapter")).path
    parameters = json.loads((adapter / "training.json").read_text())["parameters"]
    assert (parameters["rank"], parameters["learning_rate"]) == (2, 0.01)
    metadata = result.asset_materializations_for_node("tiny__lora_adapter")[0].metadata
    assert metadata["steps"].value == 6
    assert metadata["evaluation_loss"].value < metadata["base_evaluation_loss"].value
    assert metadata["loss_curve"].value.startswith("![Training and evaluation loss](data:image/png")


def test_a_loss_above_the_bound_blocks_the_run_and_stays_visible(materialize):
    result, _, _ = materialize({"parameters": {}, "value": 5.0}, max_evaluation_loss=0.1)
    assert not result.success
    assert verdicts(result) == {LOSS: False, PACK_ISOLATION: True}
    assert result.asset_materializations_for_node("tiny__lora_adapter")


def test_no_workspace_is_left_after_a_clean_run(materialize):
    _, store, _ = materialize({"parameters": {}, "value": 5.0}, learning_rate=0.01)
    from pathlib import Path

    assert not list(Path(store.root, ".work").rglob("checkpoint-*"))


def test_a_study_without_a_completed_trial_is_refused(materialize):
    result, _, _ = materialize({"parameters": {}, "value": None})
    assert not result.success
    failure = result.failure_data_for_node("tiny__lora_adapter")
    assert "No trial of hpo_study completed" in str(failure.error.cause or failure.error)
