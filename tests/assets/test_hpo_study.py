"""The study asset on a published dataset: trials, checks, and the same bytes again."""

import json

import dagster as dg
import pytest
from published_inputs import publish_inputs
from tokenized_by_hand import write_dataset

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.hpo_study import BEATS_DEFAULTS, HAS_COMPLETED_TRIAL, build_hpo_study
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training import StudyConfig, TrainingConfig

LINEAGE = Lineage("tiny")
TRAINING = TrainingConfig(
    rank=4, learning_rate=1e-3, max_steps=4, batch_packs=2, accumulation_steps=1, evaluation_rows=8
)
STUDY = StudyConfig.model_validate(
    {"trials": 2, "budget_share": 0.5, "evaluations": 1, "space": {"learning_rate": {"low": 1e-4, "high": 1e-2}}}
)


@pytest.fixture
def materialize(tiny_base, tmp_path):
    store, instance = ArtifactStore(root=str(tmp_path / "store")), dg.DagsterInstance.ephemeral()
    dataset = write_dataset(tiny_base, tmp_path / "dataset")
    publish_inputs(instance, store, {LINEAGE.key("tokenized_dataset"): dataset, LINEAGE.key("base_model"): tiny_base})

    def run(study=STUDY):
        asset = build_hpo_study(LINEAGE, study, TRAINING)
        result = dg.materialize([asset], resources={"store": store}, instance=instance, raise_on_error=False)
        return result, store, instance

    return run


def test_the_best_parameters_are_published_with_both_verdicts(materialize):
    result, store, instance = materialize()
    assert result.success
    event = result.asset_materializations_for_node("tiny__hpo_study")[0]
    best = json.loads((store.open(instance, LINEAGE.key("hpo_study")).path / "best.json").read_text())
    verdicts = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert event.metadata["best_value"].value == best["value"]
    assert event.metadata["trials"].value == 2
    assert verdicts[HAS_COMPLETED_TRIAL].passed
    assert verdicts[BEATS_DEFAULTS].severity == dg.AssetCheckSeverity.WARN


def test_the_same_inputs_give_the_same_fingerprint(materialize):
    versions = set()
    for _ in range(2):
        result, _, _ = materialize()
        versions.add(result.asset_materializations_for_node("tiny__hpo_study")[0].metadata["fingerprint"].value)
    assert len(versions) == 1


def test_a_study_reads_as_stale_when_its_space_changes():
    other = StudyConfig.model_validate({"space": {"rank": {"choices": [4, 8]}}})
    key = LINEAGE.key("hpo_study")
    versions = {build_hpo_study(LINEAGE, study, TRAINING).specs_by_key[key].code_version for study in (STUDY, other)}
    assert len(versions) == 2
