"""Compressed-tensors variants: what they hold, that a rerun gives the same bytes, and what is refused before work."""

import filecmp
import json
import re

import pytest
import yaml
from safetensors import safe_open

from llm_assets.quantization.calibration import held_out_rows
from llm_assets.quantization.compressed import GroupSizeUnfit, refuse_unfit_groups
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.quantize import quantize
from llm_assets.quantization.recovery import measured_recovery

SCHEMES = [
    {"scheme": "fp8_dynamic"},
    {"scheme": "fp8_static"},
    {"scheme": "int8_w8a8"},
    {"scheme": "w4a16"},
    {"scheme": "w4a16", "method": "awq"},
    {"scheme": "w4a16", "kv_cache": "fp8", "group_size": 32},
    {"scheme": "nvfp4"},
    {"scheme": "nvfp4a16"},
    {"scheme": "mxfp4"},
]


@pytest.mark.parametrize("settings", SCHEMES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_variant_is_smaller_opens_in_transformers_and_recovers(settings, merged, tokenized, variant):
    made = variant(**settings)
    config = QuantizationConfig(**settings, min_recovery=0.9)
    summary = json.loads((made / "quantization.json").read_text())
    result = measured_recovery(merged, made, held_out_rows(tokenized, 24, 0), config, lambda line: None)
    assert result.passed, result.summary
    assert summary["bytes"] < 0.65 * summary["merged_bytes"]
    assert (summary["scheme"], summary["engine"]) == (settings["scheme"], "vllm")


def test_tokenizer_template_and_stop_ids_are_the_merged_models_own_bytes(merged, variant):
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]
    same, different, missing = filecmp.cmpfiles(merged, variant(scheme="fp8_dynamic"), names, shallow=False)
    assert (sorted(same), different, missing) == (sorted(names), [], [])


def test_embeddings_and_head_keep_16_bits(variant):
    with safe_open(variant(scheme="w4a16") / "model.safetensors", framework="pt") as tensors:
        stored = {name: str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
    assert stored["model.embed_tokens.weight"] == "torch.bfloat16"
    assert not any(name.startswith("lm_head") for name in stored)
    assert stored["model.layers.0.mlp.down_proj.weight_packed"] == "torch.int32"


@pytest.mark.parametrize("settings", [{"scheme": "w4a16"}, {"scheme": "int8_w8a8"}, {"scheme": "gguf_q8_0"}], ids=str)
def test_a_rerun_gives_the_same_bytes(settings, merged, tokenized, variant, tmp_path):
    config = QuantizationConfig(calibration_rows=16, **settings)
    quantize(merged, tokenized, tmp_path, config, lambda line: None)
    first = variant(**settings)
    names = sorted(path.name for path in first.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert filecmp.cmpfiles(first, tmp_path, names, shallow=False)[0] == names


@pytest.mark.parametrize("settings", [{"scheme": "w4a16"}, {"scheme": "int8_w8a8"}], ids=str)
def test_published_text_holds_no_path_and_no_time_and_the_recipe_is_plain_yaml(settings, merged, variant):
    made = variant(**settings)
    for path in [*made.glob("*.json"), made / "recipe.yaml"]:
        text = path.read_text()
        assert str(merged.parent) not in text
        assert not re.search(r"20\d\d-\d\d-\d\d", text)
    stages = yaml.safe_load((made / "recipe.yaml").read_text())
    assert stages["default_stage"]["default_modifiers"]["GPTQModifier"]["ignore"] == ["lm_head"]


def test_the_calibration_rows_are_on_record_by_id_and_from_training(variant):
    ids = json.loads((variant(scheme="w4a16") / "quantization.json").read_text())["calibration_row_ids"]
    assert len(set(ids)) == 16
    assert all(row_id.startswith("train-") for row_id in ids)
    assert json.loads((variant(scheme="fp8_dynamic") / "quantization.json").read_text())["calibration_row_ids"] == []


def test_a_group_size_that_divides_no_width_is_refused_before_work_with_the_one_that_does(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=96, **shape)).to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    with pytest.raises(GroupSizeUnfit, match=r"over 128 weights, but .* inputs .* Use group_size: 32, or a scheme"):
        refuse_unfit_groups(tmp_path, QuantizationConfig(scheme="w4a16"))
    refuse_unfit_groups(tmp_path, QuantizationConfig(scheme="w4a16", group_size=32))
    refuse_unfit_groups(tmp_path, QuantizationConfig(scheme="int8_w8a8"))


def test_progress_reaches_the_caller(merged, tokenized, tmp_path):
    lines: list[str] = []
    quantize(merged, tokenized, tmp_path, QuantizationConfig(scheme="w4a16", calibration_rows=4), lines.append)
    assert lines[0] == "w4a16: calibrating on 4 training rows"
    assert "x smaller" in lines[-1]
