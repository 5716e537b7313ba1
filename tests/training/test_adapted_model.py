import json

import pytest
import torch

from llm_assets.training.adapted_model import (
    ADAPTER_FILE,
    AdapterEmpty,
    add_adapter,
    load_base,
    quantized_modules,
    require_trained,
    save_adapter,
)
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.packs import read_rows
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid


def first_layer_gradient(model):
    model.zero_grad()
    model.train()
    ids = torch.arange(3, 40)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if ".0." in name and "lora_B" in name}


def test_gradients_after_an_evaluation_are_those_before_it(tiny_base, dataset):
    torch.manual_seed(0)
    model = add_adapter(load_base(tiny_base, "qlora", "bfloat16", device="cpu"), TrainingConfig(rank=4))
    before = first_layer_gradient(model)
    evaluation_loss(model, read_rows(dataset, "validation", 4))
    after = first_layer_gradient(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_linear_layer_but_the_head_is_in_four_bit(tiny_base):
    names = quantized_modules(load_base(tiny_base, "qlora", "bfloat16", device="cpu"))
    assert len(names) == 14
    assert "model.layers.1.mlp.down_proj" in names
    assert not any("lm_head" in name for name in names)


def test_adapters_are_float32(tiny_base):
    model = add_adapter(load_base(tiny_base, "lora", "bfloat16", device="cpu"), TrainingConfig(method="lora", rank=4))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_an_untrained_adapter_is_refused(tiny_base, tmp_path):
    model = add_adapter(load_base(tiny_base, "lora", "float32", device="cpu"), TrainingConfig(method="lora", rank=4))
    with pytest.raises(AdapterEmpty, match="14 lora_B matrices and all are zero"):
        save_adapter(model, tmp_path)


def test_an_adapter_saved_after_a_merge_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({}, tmp_path / ADAPTER_FILE)
    with pytest.raises(AdapterEmpty, match="0 lora_B matrices"):
        require_trained(tmp_path)


def test_an_adapter_with_a_value_that_is_not_finite_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"layer.lora_B.weight": torch.tensor([[float("nan")]])}, tmp_path / ADAPTER_FILE)
    with pytest.raises(AdapterEmpty, match=r"layer\.lora_B\.weight of the saved adapter is not finite"):
        require_trained(tmp_path)


def test_the_saved_config_names_no_path_and_lists_modules_in_order(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])


def test_an_unknown_target_module_is_refused_with_those_there_are(tiny_base):
    config = TrainingConfig(method="lora", target_modules=("q_proj", "qkv"))
    with pytest.raises(TrainingConfigInvalid, match=r"names qkv; linear layers of this base are .*down_proj"):
        add_adapter(load_base(tiny_base, "lora", "float32", device="cpu"), config)


def test_float16_on_a_cpu_is_refused(tiny_base):
    with pytest.raises(TrainingConfigInvalid, match="float16 does not train on a CPU"):
        load_base(tiny_base, "lora", "float16", device="cpu")
