"""An adapter that does not belong to its base, or lacks something, is refused before a byte is written."""

import json
import shutil

import pytest
import torch
from peft_adapters import save_adapter, write_base, write_record
from safetensors.torch import load_file, save_file

from llm_assets.training.adapted_model import AdapterEmpty
from llm_assets.training.adapter_reader import AdapterUnmergeable
from llm_assets.training.base_match import AnotherBase
from llm_assets.training.merge import merge_adapter
from llm_assets.training.merge_config import MergeConfig

PREFIX = "base_model.model."
Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))


@pytest.fixture(scope="module")
def saved(tiny_base, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved")
    save_adapter(tiny_base, out, target_modules=["q_proj", "k_proj"], trainable_token_indices=[1, 2])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_base / name, out / name)
    return out


@pytest.fixture
def changed(saved, tmp_path):
    """A copy of the adapter with tensors passed through a function and config entries replaced."""

    def make(tensors=lambda tensors: tensors, **config):
        copy = tmp_path / "adapter"
        shutil.copytree(saved, copy)
        found = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(found | config))
        save_file(tensors(load_file(copy / "adapter_model.safetensors")), copy / "adapter_model.safetensors")
        return copy

    return make


def refused(base, adapter, out):
    out.mkdir()
    try:
        merge_adapter(base, adapter, out, MergeConfig(policy="original"), lambda _: None)
    finally:
        assert not list(out.iterdir())


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def reshaped(part, shape):
    return lambda tensors: {n: torch.ones(shape) if part in n else tensor for n, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "error", "named"),
    [
        (lambda ts: {n: t * 0 if "lora_B" in n else t for n, t in ts.items()}, AdapterEmpty, "All 4 B matrices"),
        (without(f"{Q1}.lora_B"), AdapterUnmergeable, f"has lora_A for {Q1}, not lora_A and lora_B"),
        (without(Q1), AdapterUnmergeable, f"no tensors for {Q1}, which its config names \\(1 such"),
        (without("token_adapter"), AdapterUnmergeable, "no tensors for the trained tokens"),
        (lambda ts: {**ts, PREFIX + "lora_embedding_A": torch.ones(2)}, AdapterUnmergeable, "like .*lora_embedding_A"),
        (lambda ts: {**ts, f"{PREFIX}{Q0}.weight": torch.ones(128, 128)}, AdapterUnmergeable, "in two ways"),
        (reshaped(f"{Q0}.lora_A", (3, 128)), AdapterUnmergeable, f"{Q0} have rank 3 and its config says 4"),
        (reshaped("token_adapter", (3, 128)), AdapterUnmergeable, "3 trained tokens .* its config names 2"),
        (renamed("layers.1", "layers.7"), AnotherBase, r"no tensor model\.layers\.7.* \(2 such\).*another base"),
        (reshaped(f"{Q0}.lora_A", (4, 96)), AnotherBase, r"shape \[128, 96\], and the base's is \[128, 128\]"),
    ],
)
def test_an_adapter_with_other_tensors_is_refused_by_name(tiny_base, changed, tmp_path, tensors, error, named):
    with pytest.raises(error, match=named):
        refused(tiny_base, changed(tensors), tmp_path / "out")


@pytest.mark.parametrize(
    "setting",
    [
        {"peft_type": "LOHA"},
        {"bias": "all"},
        {"target_parameters": ["experts.weight"]},
        {"layer_replication": [[0, 1]]},
        {"init_lora_weights": "pissa_niter_4"},
        {"alora_invocation_tokens": [3]},
    ],
    ids=str,
)
def test_a_setting_the_merge_does_not_reproduce_is_refused_by_name(tiny_base, changed, tmp_path, setting):
    with pytest.raises(AdapterUnmergeable, match=f"uses {next(iter(setting))}="):
        refused(tiny_base, changed(**setting), tmp_path / "out")


def test_a_trained_token_beyond_the_base_s_rows_is_refused(tiny_base, changed, tmp_path):
    with pytest.raises(AnotherBase, match=r"trains token 512, and model\.embed_tokens\.weight .* has 512 rows"):
        refused(tiny_base, changed(trainable_token_indices=[1, 512]), tmp_path / "out")


def test_a_resized_vocabulary_is_refused(tiny_base, changed, tmp_path):
    def resized(tensors):
        kept = without("token_adapter")(tensors)
        return {**kept, f"{PREFIX}model.embed_tokens.weight": torch.ones(520, 128)}

    adapter = changed(resized, trainable_token_indices=None, modules_to_save=["embed_tokens"])
    with pytest.raises(AnotherBase, match=r"shape \[520, 128\].*\[512, 128\]: its vocabulary was resized"):
        refused(tiny_base, adapter, tmp_path / "out")


def test_a_base_with_another_vocabulary_is_refused(tiny_base, changed, tmp_path):
    adapter = changed()
    vocabulary = json.loads((adapter / "tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    (adapter / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(AnotherBase, match=r"2 tokens .*another id in the base's vocabulary, such as 'a'"):
        refused(tiny_base, adapter, tmp_path / "out")


def test_a_base_of_the_same_shapes_and_other_weights_is_refused(tiny_base, changed, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AnotherBase, match="same shapes, other weights"):
        refused(other, changed(), tmp_path / "out")


def test_a_base_of_another_architecture_is_refused(changed, tmp_path):
    with pytest.raises(AnotherBase, match="belongs to another base"):
        refused(write_base(tmp_path / "untied", "untied"), changed(), tmp_path / "out")


def test_a_four_bit_module_the_base_does_not_have_is_refused(tiny_base, changed, tmp_path):
    adapter = changed()
    write_record(adapter, tiny_base, quantized_modules=["model.layers.9.mlp.up_proj"])
    with pytest.raises(AnotherBase, match=r"model\.layers\.9\.mlp\.up_proj was in 4 bit"):
        refused(tiny_base, adapter, tmp_path / "out")


def test_a_fully_trained_model_of_other_shapes_is_refused(tiny_base, tmp_path):
    trained = write_base(tmp_path / "untied", "untied")
    write_record(trained, tiny_base, method="full")
    with pytest.raises(AnotherBase, match=r"differ in model\.layers\.0\.self_attn\.k_proj\.bias \(26 such"):
        refused(tiny_base, trained, tmp_path / "out")


def test_a_lora_bias_on_a_layer_without_bias_is_refused(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(AnotherBase, match=r"no tensor .*q_proj\.bias .*lora_bias needs layers that have a bias"):
        refused(tiny_base, adapter, tmp_path / "out")


def test_dora_on_a_transposed_weight_is_refused(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["embed_tokens"], use_dora=True)
    with pytest.raises(AdapterUnmergeable, match=r"use_dora on model\.embed_tokens, whose weight is stored transposed"):
        refused(tiny_base, adapter, tmp_path / "out")
