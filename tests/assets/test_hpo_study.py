"""The study asset on a published dataset: trials, checks, runs in MLflow, and the same bytes again."""

import importlib
import json

import dagster as dg
import pytest
from published_inputs import publish_inputs
from published_lineage import empty_database
from tokenized_by_hand import write_dataset

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.hpo_study import BEATS_DEFAULTS, HAS_COMPLETED_TRIAL, build_hpo_study
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.training import StudyConfig, TrainingConfig
from llm_assets.training.forking import STACK

LINEAGE = Lineage("tiny")
KEY = LINEAGE.key("hpo_study")
TRAINING = TrainingConfig(
    rank=4, learning_rate=1e-3, max_steps=4, batch_packs=2, accumulation_steps=1, evaluation_rows=8
)


def study(**changes) -> StudyConfig:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "rank": {"choices": [2, 4]}}
    settings = {"trials": 2, "budget_share": 0.5, "evaluations": 1, "space": space, "log_to_mlflow": False}
    return StudyConfig.model_validate({**settings, **changes})


@pytest.fixture
def materialize(tiny_base, tmp_path):
    for name in STACK:
        importlib.import_module(name)
    store, instance = ArtifactStore(root=str(tmp_path / "store")), dg.DagsterInstance.ephemeral()
    dataset = write_dataset(tiny_base, tmp_path / "dataset")
    publish_inputs(instance, store, {LINEAGE.key("tokenized_dataset"): dataset, LINEAGE.key("base_model"): tiny_base})
    (tmp_path / "mlflow.db").write_bytes(empty_database())
    tracking = MLflowTracking(
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifact_root=str(tmp_path / "mlartifacts")
    )

    def run(settings, training=TRAINING):
        asset = build_hpo_study(LINEAGE, settings, training)
        resources = {"store": store, "tracking": tracking}
        result = dg.materialize([asset], resources=resources, instance=instance, raise_on_error=False)
        event = next(iter(result.asset_materializations_for_node("tiny__hpo_study")), None)
        return result, event.metadata if event else {}

    run.store, run.instance, run.tracking = store, instance, tracking
    return run


def test_the_best_parameters_are_published_with_cost_pictures_and_verdicts(materialize):
    result, found = materialize(study(trials=5, pruner="none"))
    assert result.success
    best = json.loads((materialize.store.open(materialize.instance, KEY).path / "best.json").read_text())
    verdicts = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert found["best_value"].value == best["value"]
    assert found["trials"].value == found["complete_trials"].value == 5
    assert found["tokens"].value == found["tokens_without_pruning"].value > 0
    assert found["pruned_share"].value == found["tokens_saved_share"].value == 0
    assert found["trial_seconds"].value > 0
    for picture in ("history", "slices", "importance"):
        assert "data:image/png;base64," in found[picture].value
    assert verdicts[HAS_COMPLETED_TRIAL].passed
    assert verdicts[BEATS_DEFAULTS].severity == dg.AssetCheckSeverity.WARN


def test_an_unchanged_study_is_used_again_under_the_same_fingerprint(materialize):
    _, first = materialize(study())
    _, again = materialize(study(), TRAINING.model_copy(update={"save_every_steps": 7}))
    _, other = materialize(study(seed=1))
    assert (first["reused"].value, again["reused"].value, other["reused"].value) == (False, True, False)
    assert first["fingerprint"].value == again["fingerprint"].value != other["fingerprint"].value


def test_a_study_is_one_run_in_mlflow_with_a_run_per_trial_in_it(materialize):
    _, found = materialize(study(log_to_mlflow=True))
    client = materialize.tracking.store().client()
    experiment = client.get_experiment_by_name("tiny").experiment_id
    parent = client.get_run(found["mlflow"].value)
    trials = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert parent.data.metrics["best_value"] == found["best_value"].value
    assert parent.data.tags["dagster.asset"] == "tiny/hpo_study"
    assert sorted(run.info.run_name for run in trials) == ["trial 0", "trial 1"]
    assert min(run.data.metrics["evaluation_loss"] for run in trials) == found["best_value"].value
    assert {run.data.params["rank"] for run in trials} <= {"2", "4"}


def test_a_study_reads_as_stale_when_its_space_changes_and_not_when_its_database_moves():
    def version(settings):
        return build_hpo_study(LINEAGE, settings, TRAINING).specs_by_key[KEY].code_version

    assert version(study()) != version(study(space={"rank": {"choices": [4, 8]}}))
    assert version(study()) == version(study(storage_url="postgresql://u:${PASSWORD}@db/optuna"))
