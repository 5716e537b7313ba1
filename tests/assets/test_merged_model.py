"""The merged model asset on published inputs: loads, is checked, and blocks on a broken base."""

import json
import shutil

import dagster as dg
import pytest
from published_inputs import publish_inputs
from tokenized_by_hand import write_dataset

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.merged_model import (
    MERGE_EQUIVALENCE,
    TOKENIZER_CONSISTENCY,
    WEIGHTS_FINITE,
    build_merged_model,
)
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training import MergeConfig, TrainingConfig
from llm_assets.training.trainer import train_adapter

LINEAGE = Lineage("tiny")
CONFIG = TrainingConfig(rank=4, learning_rate=1e-2, max_steps=6, batch_packs=2, accumulation_steps=1, evaluation_rows=8)


@pytest.fixture(scope="module")
def inputs(tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    dataset = write_dataset(tiny_base, root / "dataset")
    (root / "adapter").mkdir()
    train_adapter(tiny_base, dataset, root / "adapter", root / "work", CONFIG, log=lambda _: None)
    return {"base_model": tiny_base, "tokenized_dataset": dataset, "lora_adapter": root / "adapter"}


@pytest.fixture
def materialize(inputs, tmp_path):
    store, instance = ArtifactStore(root=str(tmp_path / "store")), dg.DagsterInstance.ephemeral()

    def run(merge=MergeConfig(), **replaced):  # noqa: B008 - frozen
        directories = {LINEAGE.key(name): path for name, path in {**inputs, **replaced}.items()}
        publish_inputs(instance, store, directories)
        asset = build_merged_model(LINEAGE, merge)
        result = dg.materialize([asset], resources={"store": store}, instance=instance, raise_on_error=False)
        return result, store, instance

    return run


def verdicts(result):
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def test_the_merged_model_loads_and_passes_its_checks(materialize):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result, store, instance = materialize()
    assert result.success
    assert verdicts(result) == {MERGE_EQUIVALENCE: True, WEIGHTS_FINITE: True, TOKENIZER_CONSISTENCY: True}
    path = store.open(instance, LINEAGE.key("merged_model")).path
    assert AutoModelForCausalLM.from_pretrained(path).config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(path).chat_template
    metadata = result.asset_materializations_for_node("tiny__merged_model")[0].metadata
    assert metadata["merged_modules"].value == 14
    assert metadata["policy"].value == "trained_function"


def test_a_tokenizer_that_is_not_the_training_one_blocks_the_run(materialize, inputs, tmp_path):
    foreign = tmp_path / "adapter"
    shutil.copytree(inputs["lora_adapter"], foreign)
    (foreign / "chat_template.jinja").write_text("{{ messages }}")
    result, _, _ = materialize(lora_adapter=foreign)
    assert not result.success
    assert verdicts(result)[TOKENIZER_CONSISTENCY] is False


def test_another_adapter_makes_another_data_version(materialize, inputs, tmp_path):
    foreign = tmp_path / "adapter"
    shutil.copytree(inputs["lora_adapter"], foreign)
    config = json.loads((foreign / "adapter_config.json").read_text())
    _, store, instance = materialize()
    good = store.open(instance, LINEAGE.key("merged_model")).fingerprint
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 64}))
    _, store, instance = materialize(lora_adapter=foreign)
    assert store.open(instance, LINEAGE.key("merged_model")).fingerprint != good
