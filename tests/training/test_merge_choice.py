"""Policy auto saves, reloads and scores both merges, keeps the better one, and says so."""

import json
import math

import pytest
from peft_adapters import save_adapter, write_record

from llm_assets.training.merge_choice import lowest, merge_by_policy
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merge_report import change_by_layer, change_picture, policy_decision
from llm_assets.training.shard_writer import DiskTooSmall

NF4 = {"type": "nf4", "double_quant": True, "block_size": 64, "compute_dtype": "bfloat16"}
AUTO = MergeConfig(policy="auto", equivalence_rows=4)


@pytest.fixture(scope="module")
def qlora_adapter(tiny_base, tmp_path_factory):
    adapter = save_adapter(tiny_base, tmp_path_factory.mktemp("qlora"), target_modules=["up_proj", "q_proj"])
    modules = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("mlp.up_proj", "self_attn.q_proj")]
    write_record(adapter, tiny_base, method="qlora", quantized_modules=modules, quantization=NF4)
    return adapter


@pytest.fixture(scope="module")
def chosen(tiny_base, qlora_adapter, dataset, tmp_path_factory):
    out, lines = tmp_path_factory.mktemp("auto"), []
    record = merge_by_policy(tiny_base, qlora_adapter, dataset, out, AUTO, lines.append)
    return out, record, lines


def test_both_policies_are_measured_and_the_lower_loss_is_kept(chosen, tiny_base, qlora_adapter, dataset, tmp_path):
    out, record, lines = chosen
    losses = record["held_out_loss"]
    assert set(losses) == {"dequantized", "original"}
    assert losses["dequantized"] != losses["original"]
    assert record["policy"] == min(losses, key=losses.get)
    assert record == json.loads((out / "merge.json").read_text())
    assert sum("nats per token on 4 validation rows" in line for line in lines) == 2
    alone = MergeConfig(policy=record["policy"])
    merge_by_policy(tiny_base, qlora_adapter, dataset, tmp_path, alone, lambda _: None)
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in tmp_path.iterdir())


def test_the_decision_is_told_with_both_numbers(chosen):
    _, record, _ = chosen
    told = policy_decision(record)
    assert told.startswith(record["policy"])
    assert all(f"{loss:.5f}" in told for loss in record["held_out_loss"].values())


def test_nothing_is_measured_where_nothing_was_in_four_bit(tiny_base, qlora_adapter, dataset, tmp_path):
    import shutil

    adapter = tmp_path / "adapter"
    shutil.copytree(qlora_adapter, adapter)
    write_record(adapter, tiny_base)
    (tmp_path / "out").mkdir()
    record = merge_by_policy(tiny_base, adapter, dataset, tmp_path / "out", AUTO, lambda _: None)
    assert (record["policy"], record["requested_policy"], record["held_out_loss"]) == ("original", "auto", {})
    assert "every policy is the same merge" in policy_decision(record)


def test_measuring_both_needs_room_for_both(tiny_base, qlora_adapter, dataset, tmp_path, monkeypatch):
    import shutil

    weights = (tiny_base / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, int(1.5 * weights)))
    with pytest.raises(DiskTooSmall):
        merge_by_policy(tiny_base, qlora_adapter, dataset, tmp_path, AUTO, lambda _: None)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_a_number_never_wins():
    assert lowest({"dequantized": math.nan, "original": 3.0}) == "original"
    assert lowest({"dequantized": 2.0, "original": 2.0}) == "dequantized"


def test_the_change_is_drawn_by_layer_and_kind_of_module(chosen):
    _, record, _ = chosen
    lines = change_by_layer(record)
    assert {name: [layer for layer, _ in points] for name, points in lines.items()} == {
        "q_proj": [0, 1],
        "up_proj": [0, 1],
    }
    assert all(percent > 0 for points in lines.values() for _, percent in points)
    png = change_picture(record)
    assert png
    assert png.startswith(b"\x89PNG")
    assert change_picture({**record, "modules": []}) is None
