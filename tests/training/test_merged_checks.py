"""What is wrong with a saved model is found from its directory, and named."""

import json
import shutil

import pytest
from peft_adapters import save_adapter
from safetensors.torch import load_file, save_file

from llm_assets.training.merge import merge_adapter
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merged_checks import check_tokenizer_consistency, check_weights_finite


@pytest.fixture(scope="module")
def merged(tiny_base, dataset, tmp_path_factory):
    adapter, out = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("merged")
    save_adapter(tiny_base, adapter, target_modules=["q_proj"])
    shutil.copytree(dataset / "tokenizer", adapter, dirs_exist_ok=True)
    merge_adapter(tiny_base, adapter, out, MergeConfig(policy="original"), lambda _: None)
    return out


@pytest.fixture
def damaged(merged, tmp_path):
    """A copy of the merged model with its weights passed through a function."""

    def make(change):
        copy = tmp_path / "damaged"
        shutil.copytree(merged, copy)
        save_file(change(load_file(copy / "model.safetensors")), copy / "model.safetensors")
        return copy

    return make


def test_finite_weights_pass(merged):
    assert check_weights_finite(merged).passed


def test_a_weight_that_is_not_finite_is_named(damaged):
    def overflow(tensors):
        tensors["model.norm.weight"][0] = float("inf")
        return tensors

    result = check_weights_finite(damaged(overflow))
    assert not result.passed
    assert result.rows == [{"tensor": "model.norm.weight", "not_finite": 1}]


def test_the_training_tokenizer_is_consistent(tiny_base, merged, dataset):
    assert check_tokenizer_consistency(tiny_base, merged, dataset).passed


def test_another_chat_template_is_found(tiny_base, damaged, dataset):
    model = damaged(lambda tensors: tensors)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    result = check_tokenizer_consistency(tiny_base, model, dataset)
    assert "chat_template.jinja differs" in result.summary


def test_a_moved_token_is_found(tiny_base, damaged, dataset):
    model = damaged(lambda tensors: tensors)
    vocabulary = json.loads((model / "tokenizer.json").read_text())
    tokens = vocabulary["model"]["vocab"]
    tokens["a"], tokens["b"] = tokens["b"], tokens["a"]
    (model / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "2 tokens have another id" in check_tokenizer_consistency(tiny_base, model, dataset).summary


def test_a_forgotten_stop_token_is_found(tiny_base, damaged, dataset):
    model = damaged(lambda tensors: tensors)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert "does not stop at token 2" in check_tokenizer_consistency(tiny_base, model, dataset).summary


def test_a_stored_head_beside_tied_embeddings_is_found(tiny_base, damaged, dataset):
    model = damaged(lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert "a separate lm_head.weight is stored" in check_tokenizer_consistency(tiny_base, model, dataset).summary


def test_a_missing_head_without_tied_embeddings_is_found(tiny_base, damaged, dataset):
    model = damaged(lambda tensors: tensors)
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": False}
    (model / "config.json").write_text(json.dumps(config))
    assert "no lm_head.weight is stored" in check_tokenizer_consistency(tiny_base, model, dataset).summary
