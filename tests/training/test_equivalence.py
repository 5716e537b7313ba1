import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from llm_assets.training.equivalence import (
    check_merge_equivalence,
    check_tokenizer_consistency,
    check_weights_finite,
)
from llm_assets.training.merge import MergeConfig, merge_adapter


@pytest.fixture(scope="module")
def merged(tiny_base, adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged")
    merge_adapter(tiny_base, adapter, out, MergeConfig(), lambda _: None)
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


def test_a_merge_of_the_trained_function_is_equivalent(tiny_base, adapter, merged, dataset):
    result = check_merge_equivalence(tiny_base, adapter, merged, dataset, MergeConfig())
    assert result.passed
    assert result.numbers["mean_kl"] < 1e-4
    assert abs(result.numbers["loss_delta"]) < 1e-2


def test_the_base_in_place_of_the_merged_model_is_not_equivalent(tiny_base, adapter, dataset):
    result = check_merge_equivalence(tiny_base, adapter, tiny_base, dataset, MergeConfig())
    assert not result.passed
    assert result.numbers["loss_delta"] > 0


def test_a_merge_into_the_originals_is_judged_by_its_loss(tiny_base, adapter, dataset):
    config = MergeConfig(policy="original_base")
    assert not check_merge_equivalence(tiny_base, adapter, tiny_base, dataset, config).passed


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
