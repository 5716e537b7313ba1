import json

import pytest
import torch
from safetensors.torch import save_file

from llm_assets.training.shard_writer import Announced, writing
from llm_assets.training.shards import WeightsMissing, WeightsUnreadable, entries, read_rows, shard_names


def test_rows_are_read_from_where_the_header_says(tmp_path):
    tensors = {"a": torch.arange(12.0).view(4, 3), "b": torch.arange(6, dtype=torch.bfloat16), "c": torch.tensor(7)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = {entry.name: entry for entry in entries(tmp_path / "x.safetensors")}
    assert all(torch.equal(read_rows(found[name]), tensor) for name, tensor in tensors.items())
    assert torch.equal(read_rows(found["a"], 1, 3), tensors["a"][1:3])
    assert [found[name].is_float for name in "abc"] == [True, True, False]


def test_what_is_written_is_read_back_by_safetensors(tmp_path):
    from safetensors.torch import load_file

    source = {"weight": torch.randn(700, 1000), "steps": torch.arange(5)}
    save_file(source, tmp_path / "in.safetensors")
    found = {entry.name: entry for entry in entries(tmp_path / "in.safetensors")}
    announced = [Announced("steps", "int64", (5,)), Announced("weight", "bfloat16", (700, 1000))]
    with writing(tmp_path / "out.safetensors", announced) as writer:
        writer.copy(found["steps"])
        writer.append(source["weight"][:300])
        writer.append(source["weight"][300:])
    written = load_file(tmp_path / "out.safetensors")
    assert torch.equal(written["steps"], source["steps"])
    assert torch.equal(written["weight"], source["weight"].to(torch.bfloat16))


@pytest.mark.parametrize("rows", [2, 4])
def test_a_tensor_of_another_size_than_announced_is_not_written(tmp_path, rows):
    with (
        pytest.raises(ValueError, match="weight"),
        writing(tmp_path / "out.safetensors", [Announced("weight", "float32", (3, 2))]) as writer,
    ):
        writer.append(torch.zeros(rows, 2))


def test_a_git_lfs_pointer_is_told_from_weights(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightsUnreadable, match="git lfs pull"):
        entries(tmp_path / "model.safetensors")


def test_a_file_cut_short_is_refused_with_both_sizes(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsUnreadable, match=f"has {whole - 40} of {whole} bytes"):
        entries(path)


def test_a_quantized_format_is_refused(tmp_path):
    save_file({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsUnreadable, match=r"F8_E4M3 tensors.*full-precision"):
        entries(tmp_path / "model.safetensors")


def test_a_model_without_safetensors_is_refused(tmp_path):
    with pytest.raises(WeightsMissing, match=r"lacks model\.safetensors"):
        shard_names(tmp_path)


def test_an_index_that_points_elsewhere_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(WeightsUnreadable, match=r"names \.\./model\.safetensors"):
        shard_names(tmp_path)
