"""The merged model asset on published inputs: loads, is checked, and leaves nothing behind when it is killed."""

import json
import os
import shutil
import signal

import dagster as dg
import pytest
from peft_adapters import save_adapter, write_record
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
from llm_assets.training import MergeConfig
from llm_assets.training.merge_choice import merge_by_policy

LINEAGE = Lineage("tiny")
KEY = LINEAGE.key("merged_model")
MERGE = MergeConfig(equivalence_rows=8, greedy_prompts=1, greedy_tokens=4)
NF4 = {"type": "nf4", "double_quant": True, "block_size": 64, "compute_dtype": "bfloat16"}


@pytest.fixture(scope="module")
def inputs(tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    dataset = write_dataset(tiny_base, root / "dataset")
    adapter = save_adapter(tiny_base, root / "adapter", target_modules=["q_proj", "up_proj"])
    shutil.copytree(dataset / "tokenizer", adapter, dirs_exist_ok=True)
    modules = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("mlp.up_proj", "self_attn.q_proj")]
    parameters = {"compute_dtype": "bfloat16"}
    write_record(adapter, tiny_base, method="lora", quantized_modules=[], parameters=parameters)
    four_bit = root / "four_bit"
    shutil.copytree(adapter, four_bit)
    write_record(
        four_bit, tiny_base, method="qlora", quantized_modules=modules, quantization=NF4, parameters=parameters
    )
    return {"base_model": tiny_base, "tokenized_dataset": dataset, "lora_adapter": adapter, "four_bit": four_bit}


@pytest.fixture
def materialize(inputs, tmp_path):
    store, instance = ArtifactStore(root=str(tmp_path / "store")), dg.DagsterInstance.ephemeral()

    def run(merge=MERGE, **replaced):
        given = {name: path for name, path in inputs.items() if name != "four_bit"}
        publish_inputs(instance, store, {LINEAGE.key(name): path for name, path in {**given, **replaced}.items()})
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
    path = store.open(instance, KEY).path
    assert AutoModelForCausalLM.from_pretrained(path).config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(path).chat_template
    metadata = result.asset_materializations_for_node("tiny__merged_model")[0].metadata
    assert metadata["merged_modules"].value == 4
    assert metadata["policy"].value == "dequantized"
    assert metadata["change_by_layer"].value.startswith("![Relative change")
    assert len(metadata["largest_changes"].records) == 4


def test_policy_auto_shows_both_losses_and_its_choice(materialize, inputs):
    result, _, _ = materialize(MERGE.model_copy(update={"policy": "auto"}), lora_adapter=inputs["four_bit"])
    metadata = result.asset_materializations_for_node("tiny__merged_model")[0].metadata
    losses = {policy: metadata[f"held_out_loss_{policy}"].value for policy in ("dequantized", "original")}
    assert metadata["policy"].value == min(losses, key=losses.get)
    assert "lowest loss of the saved models" in metadata["policy_decision"].value


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
    good = store.open(instance, KEY).fingerprint
    (foreign / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 64}))
    _, store, instance = materialize(lora_adapter=foreign)
    assert store.open(instance, KEY).fingerprint != good


def test_a_merge_killed_in_the_middle_leaves_nothing_and_the_next_run_starts_clean(inputs, tmp_path):
    store = ArtifactStore(root=str(tmp_path / "store"))
    base, adapter, dataset = (inputs[name] for name in ("base_model", "four_bit", "tokenized_dataset"))
    auto = MERGE.model_copy(update={"policy": "auto"})

    def killed(line):
        if line.startswith("merged shard"):
            os.kill(os.getpid(), signal.SIGKILL)

    if not (child := os.fork()):
        try:
            with store.staging() as staged:
                merge_by_policy(base, adapter, dataset, staged, auto, killed)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    staging = tmp_path / "store" / ".staging"
    assert list(staging.glob("*/artifact/candidate-dequantized/model.safetensors"))
    assert not store.versions(KEY)

    with store.staging() as staged:
        assert len([path for path in staging.iterdir() if path.is_dir()]) == 1
        merge_by_policy(base, adapter, dataset, staged, MERGE, lambda _: None)
        artifact = store.publish(KEY, staged)
    assert store.versions(KEY) == [artifact.path]
    assert not list(staging.glob("*/artifact"))
