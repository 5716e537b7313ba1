import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_assets.training import MergeConfig
from llm_assets.training.adapter_delta import AdapterUnmergeable, read_adapter
from llm_assets.training.merge import DiskTooSmall, merge_adapter, nf4_round_trip
from llm_assets.training.shards import WeightsMissing, shard_names

FLOAT32 = MergeConfig(policy="original_base", dtype="float32")


def merged(base, adapter, out, config=FLOAT32):
    out.mkdir()
    merge_adapter(base, adapter, out, config, lambda _: None)
    return {name: tensor for shard in shard_names(out) for name, tensor in load_file(out / shard).items()}


@pytest.fixture
def random_adapter(tiny_base, tmp_path):
    """Save a peft adapter with random values in every matrix, and return it with peft's own merge."""

    def make(**settings):
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
        model = get_peft_model(model, LoraConfig(**given))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
            elif "magnitude" in name:
                parameter.data *= 1.1
        out = tmp_path / "peft_adapter"
        model.save_pretrained(out)
        record = {"method": "lora", "quantized_modules": [], "quantization": None, "end_token_ids": [2]}
        (out / "training.json").write_text(json.dumps(record))
        return out, model.merge_and_unload().state_dict()

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"q_proj": 32, "up_proj": 3}},
        {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"^model.layers.0.mlp.gate_proj": 5}, "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    ],
    ids=["lora", "rslora", "dora", "patterns", "anchored", "modules_to_save"],
)
def test_a_merge_equals_peft_s(tiny_base, random_adapter, tmp_path, settings):
    adapter, expected = random_adapter(**settings)
    found = merged(tiny_base, adapter, tmp_path / "merged")
    assert found
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=1e-5, atol=1e-6)


def test_every_tensor_the_adapter_leaves_alone_is_bit_equal(tiny_base, random_adapter, tmp_path):
    adapter, _ = random_adapter(target_modules=["q_proj"])
    found = merged(tiny_base, adapter, tmp_path / "merged", MergeConfig(policy="original_base"))
    original = load_file(tiny_base / "model.safetensors")
    assert found.keys() == original.keys()
    assert [n for n in found if not torch.equal(found[n], original[n])] == [
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)
    ]


def test_the_trained_function_starts_from_the_four_bit_weights_of_training(tiny_base, adapter, tmp_path):
    from bitsandbytes.functional import dequantize_4bit

    from llm_assets.training.adapted_model import load_base

    quantized = load_base(tiny_base, "qlora", "bfloat16", device="cpu").model.layers[0].mlp.up_proj.weight
    in_training = dequantize_4bit(quantized.data, quantized.quant_state)
    name = "model.layers.0.mlp.up_proj.weight"
    original = load_file(tiny_base / "model.safetensors")[name]
    assert torch.equal(nf4_round_trip(original, "bfloat16"), in_training)
    found = merged(tiny_base, adapter, tmp_path / "a", MergeConfig(dtype="float32"))[name]
    delta = read_adapter(adapter).deltas[name].matrix()
    torch.testing.assert_close(found, in_training.float() + delta)


def test_only_modules_that_were_quantized_are_round_tripped(tiny_base, adapter, tmp_path):
    found = merged(tiny_base, adapter, tmp_path / "a", MergeConfig())
    original = load_file(tiny_base / "model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_shards_stay_shards(tiny_base, adapter, tmp_path):
    sharded = tmp_path / "sharded"
    shutil.copytree(tiny_base, sharded)
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    halves = [sorted(tensors)[::2], sorted(tensors)[1::2]]
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, names in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in names}, sharded / file)
    weight_map = {name: file for file, names in zip(files, halves, strict=True) for name in names}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    together = merged(tiny_base, adapter, tmp_path / "one")
    apart = merged(sharded, adapter, tmp_path / "two")
    assert shard_names(tmp_path / "two") == files
    assert all(torch.equal(together[name], apart[name]) for name in together)


def test_the_same_merge_has_the_same_bytes(tiny_base, adapter, tmp_path):
    for name in "ab":
        merged(tiny_base, adapter, tmp_path / name, MergeConfig())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_record_holds_the_size_of_the_change_beside_what_is_lost(tiny_base, adapter, tmp_path):
    merged(tiny_base, adapter, tmp_path / "a", MergeConfig())
    record = json.loads((tmp_path / "a" / "merge.json").read_text())
    assert record["merged_modules"] == record["round_tripped_modules"] == 14
    assert 0 < record["mean_rounding_share"] < record["mean_quantization_share"]


def test_the_merged_model_stops_where_it_was_trained_to(tiny_base, adapter, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    merged(base, adapter, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_fully_trained_model_is_stored_as_it_is(tiny_base, adapter, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(adapter, trained)
    save_file(
        {name: t * 2 for name, t in load_file(tiny_base / "model.safetensors").items()}, trained / "model.safetensors"
    )
    record = json.loads((adapter / "training.json").read_text()) | {"method": "full", "quantized_modules": []}
    (trained / "training.json").write_text(json.dumps(record))
    found = merged(tiny_base, trained, tmp_path / "a", MergeConfig())
    original = load_file(tiny_base / "model.safetensors")
    assert all(torch.equal(found[name], original[name] * 2) for name in original)


def test_an_adapter_of_another_base_is_refused(tiny_base, random_adapter, tmp_path):
    adapter, _ = random_adapter()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({n.replace("layers.1", "layers.7"): t for n, t in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterUnmergeable, match=r"no tensor model\.layers\.7.*belongs to another base"):
        merged(tiny_base, adapter, tmp_path / "a")


@pytest.mark.parametrize("setting", [{"peft_type": "LOHA"}, {"bias": "all"}, {"fan_in_fan_out": True}])
def test_an_adapter_of_another_kind_is_refused_by_name(tiny_base, random_adapter, tmp_path, setting):
    adapter, _ = random_adapter()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | setting))
    with pytest.raises(AdapterUnmergeable, match=f"uses {next(iter(setting))}="):
        merged(tiny_base, adapter, tmp_path / "a")


def test_an_unknown_adapter_tensor_is_refused(tiny_base, random_adapter, tmp_path):
    adapter, _ = random_adapter()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({**tensors, "base_model.model.lora_embedding_A": torch.ones(2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterUnmergeable, match="lora_embedding_A"):
        merged(tiny_base, adapter, tmp_path / "a")


def test_a_base_without_safetensors_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"lacks model\.safetensors"):
        shard_names(tmp_path)


def test_a_disk_too_small_is_refused_before_anything_is_written(tiny_base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskTooSmall, match=r"needs 0\.0 GB"):
        merged(tiny_base, adapter, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())
