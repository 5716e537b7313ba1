"""Merged weights have the bits of peft's own merge, for every kind of adapter it can reproduce."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft_adapters import adapted_model, merged_by_peft, save_adapter, write_base, write_record
from safetensors.torch import load_file, save_file

from llm_assets.training import MergeConfig
from llm_assets.training.merge import PolicyOpen, merge_adapter
from llm_assets.training.shard_writer import DiskTooSmall, WeightsOverflow
from llm_assets.training.shards import shard_names

FLOAT32 = MergeConfig(policy="original", dtype="float32")
BFLOAT16 = MergeConfig(policy="original", dtype="bfloat16")
QLORA = {
    "method": "qlora",
    "quantization": {"type": "nf4", "double_quant": True, "block_size": 64, "compute_dtype": "bfloat16"},
}
LAYERS = [f"model.layers.{layer}" for layer in (0, 1)]


@pytest.fixture(scope="module")
def bases(tiny_base, tmp_path_factory):
    return {
        "tied": tiny_base,
        "untied": write_base(tmp_path_factory.mktemp("untied"), "untied"),
        "conv1d": write_base(tmp_path_factory.mktemp("conv1d"), "conv1d"),
    }


def merged(base, adapter, out, config=FLOAT32):
    out.mkdir()
    merge_adapter(base, adapter, out, config, lambda _: None)
    return {name: tensor for shard in shard_names(out) for name, tensor in load_file(out / shard).items()}


def require_bits(found, expected):
    assert found
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), f"{name} differs by {(tensor - expected[name]).abs().max()}"


@pytest.mark.parametrize(
    ("base", "settings"),
    [
        ("tied", {}),
        ("tied", {"use_rslora": True}),
        ("tied", {"use_dora": True, "use_rslora": True}),
        ("tied", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}, "alpha_pattern": {"q_proj": 32}}),
        ("tied", {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"^model.layers.0.mlp.gate_proj": 5}}),
        ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
        ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [7, 1, 2]}),
        ("tied", {"target_modules": r".*\.mlp\..*_proj", "layers_to_transform": None}),
        ("tied", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        ("untied", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True}),
        ("untied", {"target_modules": ["q_proj", "lm_head"]}),
        ("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("untied", {"trainable_token_indices": {"embed_tokens": [5, 2], "lm_head": [3]}}),
        ("untied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("conv1d", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
    ids=str,
)
def test_a_merge_has_the_bits_of_peft_s(bases, tmp_path, base, settings):
    adapter = save_adapter(bases[base], tmp_path / "adapter", **settings)
    whole = merged(bases[base], adapter, tmp_path / "float32")
    require_bits(whole, merged_by_peft(bases[base], adapter, "float32"))
    stored = merged(bases[base], adapter, tmp_path / "bfloat16", BFLOAT16)
    if "embed_tokens" not in settings.get("target_modules", ()):  # there peft rounds twice, the change and the sum
        require_bits(stored, merged_by_peft(bases[base], adapter, "bfloat16"))
    require_bits(stored, {name: tensor.to(torch.bfloat16) for name, tensor in whole.items()})


@pytest.mark.parametrize("shape", [(2048, 2048), (896, 4864), (1000, 777), (2049, 1100)])
def test_blocks_of_rows_have_the_bits_of_the_whole_product(shape):
    from llm_assets.training.adapter_delta import LowRank, row_blocks
    from llm_assets.training.block_memory import BlockMemory

    torch.manual_seed(0)
    a, b, weight = torch.randn(16, shape[1]), torch.randn(shape[0], 16), torch.randn(shape)
    for delta, expected in (
        (LowRank(a, b, 2.0), weight + (b @ a) * 2.0),
        (LowRank(b.T.contiguous(), a.T.contiguous(), 2.0, transposed=True), weight + (a.T @ b.T).T * 2.0),
    ):
        memory = BlockMemory()
        blocks = [delta.apply(weight[first:last].clone(), first, memory) for first, last in row_blocks(shape)]
        assert torch.equal(torch.cat(blocks), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
    ],
    ids=str,
)
def test_an_adapter_on_one_end_of_tied_embeddings_unties_them(tiny_base, tmp_path, settings):
    from transformers import AutoModelForCausalLM

    adapter = save_adapter(tiny_base, tmp_path / "adapter", **settings)
    tensors = merged(tiny_base, adapter, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected, found = adapted_model(tiny_base, adapter, "float32")(ids).logits, model(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["untied_head"]
    assert not model.config.tie_word_embeddings


def test_an_adapter_trained_as_one_matrix_for_both_ends_leaves_them_tied(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["embed_tokens"], ensure_weight_tying=True)
    found = merged(tiny_base, adapter, tmp_path / "merged")
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{part}"] for part in "AB")
    original = load_file(tiny_base / "model.safetensors")["model.embed_tokens.weight"].float()
    change = (b @ a).T * (config["lora_alpha"] / config["r"])
    assert torch.equal(found["model.embed_tokens.weight"], original + change)
    assert "lm_head.weight" not in found
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"]


def test_untouched_tensors_keep_their_bytes(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj"])
    found = merged(tiny_base, adapter, tmp_path / "merged", BFLOAT16)
    original = load_file(tiny_base / "model.safetensors")
    assert found.keys() == original.keys()
    assert [n for n in found if not torch.equal(found[n], original[n])] == [
        f"{layer}.self_attn.q_proj.weight" for layer in LAYERS
    ]


def test_the_dequantized_policy_starts_from_the_four_bit_weights_of_training(tiny_base, tmp_path):
    from llm_assets.training.quantized_base import nf4_round_trip

    quantized = [f"{layer}.mlp.up_proj" for layer in LAYERS]
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["up_proj", "q_proj"])
    write_record(adapter, tiny_base, **QLORA, quantized_modules=quantized)
    round_tripped = tmp_path / "base"
    shutil.copytree(tiny_base, round_tripped)
    weights = load_file(tiny_base / "model.safetensors")
    names = [f"{module}.weight" for module in quantized]
    changed = {name: next(nf4_round_trip([weights[name]], "bfloat16")) for name in names}
    save_file({**weights, **changed}, round_tripped / "model.safetensors", metadata={"format": "pt"})

    found = merged(tiny_base, adapter, tmp_path / "merged", MergeConfig(policy="dequantized"))
    require_bits(found, merged_by_peft(round_tripped, adapter, "bfloat16"))
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert (record["merged_modules"], record["round_tripped_modules"]) == (4, 2)
    assert 0 < record["mean_rounding_share"] < record["mean_quantization_share"]


def test_a_four_bit_module_without_an_adapter_is_round_tripped_as_well(tiny_base, tmp_path):
    from llm_assets.training.quantized_base import nf4_round_trip

    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj"])
    write_record(adapter, tiny_base, **QLORA, quantized_modules=["model.layers.0.mlp.up_proj"])
    found = merged(tiny_base, adapter, tmp_path / "merged", MergeConfig(policy="dequantized"))
    name = "model.layers.0.mlp.up_proj.weight"
    original = load_file(tiny_base / "model.safetensors")[name]
    assert torch.equal(found[name], next(nf4_round_trip([original], "bfloat16")))


def test_shards_stay_shards(tiny_base, tmp_path):
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
    adapter = save_adapter(tiny_base, tmp_path / "adapter")
    together = merged(tiny_base, adapter, tmp_path / "one")
    write_record(adapter, sharded)
    require_bits(merged(sharded, adapter, tmp_path / "two"), together)
    assert shard_names(tmp_path / "two") == files


def test_the_same_merge_has_the_same_bytes(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter")
    for name in "ab":
        merged(tiny_base, adapter, tmp_path / name, BFLOAT16)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_merged_model_stops_where_it_was_trained_to(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    merged(base, save_adapter(base, tmp_path / "adapter"), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_a_fully_trained_model_is_stored_in_the_type_asked_for(tiny_base, tmp_path):
    trained = tmp_path / "trained"
    shutil.copytree(tiny_base, trained)
    original = load_file(tiny_base / "model.safetensors")
    save_file({name: t.float() * 2 for name, t in original.items()}, trained / "model.safetensors")
    write_record(trained, tiny_base, method="full")
    require_bits(
        merged(tiny_base, trained, tmp_path / "a", MergeConfig()), {name: t * 2 for name, t in original.items()}
    )
    assert json.loads((tmp_path / "a" / "merge.json").read_text())["merged_modules"] == 0


def test_a_value_too_large_for_float16_is_refused_by_tensor_name(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = 7e4
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(WeightsOverflow, match=r"model\.layers\.1\.mlp\.down_proj\.weight reaches 70144 .*bfloat16"):
        merged(base, adapter, tmp_path / "a", MergeConfig(policy="original", dtype="float16"))


def test_a_broken_adapter_value_is_refused_by_tensor_name(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter", target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(t for n, t in tensors.items() if "layers.1" in n and "lora_B" in n)[0, 0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(WeightsOverflow, match=r"layers\.1\.self_attn\.q_proj\.weight reaches nan.*train it anew"):
        merged(tiny_base, adapter, tmp_path / "a")


def test_a_disk_too_small_is_refused_before_anything_is_written(tiny_base, tmp_path, monkeypatch):
    adapter = save_adapter(tiny_base, tmp_path / "adapter")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(DiskTooSmall, match=r"needs 0\.0 GB"):
        merged(tiny_base, adapter, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the kernel's full device")
def test_a_disk_that_fills_up_on_the_way_gives_one_error(tiny_base, tmp_path):
    adapter = save_adapter(tiny_base, tmp_path / "adapter")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(DiskTooSmall, match=r"disk filled up while .*model\.safetensors.*nothing was published"):
        merge_adapter(tiny_base, adapter, tmp_path / "a", FLOAT32, lambda _: None)


def test_policy_auto_needs_the_rows_that_decide_it(tiny_base, tmp_path):
    with pytest.raises(PolicyOpen, match="merge_by_policy"):
        merged(tiny_base, tmp_path, tmp_path / "a", MergeConfig(policy="auto"))
