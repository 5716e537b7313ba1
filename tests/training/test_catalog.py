"""The base model catalog agrees with itself, with the architectures the lineage knows and with transformers."""

import re

import pytest
from pydantic import ValidationError

from llm_assets.training import BaseModelConfig
from llm_assets.training.base_checks import SUPPORTED_MODEL_TYPES
from llm_assets.training.catalog import CatalogNameUnknown, RevisionUnpinned, base_models, find_base_model

QWEN_3B = "aa8e72537993ba99e69dfaafa59ed015b17504d1"
EVERY = pytest.mark.parametrize("name", base_models())


def test_at_least_twenty_models_from_eight_families_have_a_name():
    assert len(base_models()) >= 20
    assert len({entry.family for entry in base_models().values()}) >= 8
    assert len({entry.hub for entry in base_models().values()}) == len(base_models())


@EVERY
def test_the_lineage_knows_every_architecture_of_the_catalog(name):
    assert find_base_model(name).model_type in SUPPORTED_MODEL_TYPES


@EVERY
def test_lora_targets_are_the_linear_layers_of_the_shape(name):
    entry = find_base_model(name)
    assert set(entry.lora_targets) == set(entry.model_shape().linear_layers())


@EVERY
def test_a_revision_is_a_whole_commit(name):
    assert re.fullmatch(r"[0-9a-f]{40}", find_base_model(name).revision or "0" * 40)


@EVERY
def test_the_parameters_follow_from_the_shape(name):
    entry, shape = find_base_model(name), find_base_model(name).model_shape()
    assert shape.linear_values + shape.other_values == pytest.approx(entry.parameters, rel=2e-3)  # biases are left out


def test_the_parameters_are_those_transformers_builds_from_the_shape():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    entry = find_base_model("llama3_2_1b_instruct")
    shape = entry.model_shape()
    config = LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert sum(weight.numel() for weight in model.parameters()) == entry.parameters


@pytest.mark.parametrize("written", ["qwen2_5_3b_instruct", {"catalog": "qwen2_5_3b_instruct"}])
def test_a_short_name_stands_for_repository_and_commit(written):
    config = BaseModelConfig.model_validate(written)
    assert (config.hub, config.revision) == ("Qwen/Qwen2.5-3B-Instruct", QWEN_3B)
    assert config == BaseModelConfig(hub="Qwen/Qwen2.5-3B-Instruct", revision=QWEN_3B)


def test_a_given_revision_wins_over_the_catalogs():
    config = BaseModelConfig.model_validate({"catalog": "qwen2_5_3b_instruct", "revision": "0" * 40})
    assert config.revision == "0" * 40


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("qwen25_3b", "qwen2_5_3b_instruct"),
        ("Qwen/Qwen3-8b", "qwen3_8b"),
        ("lama3_1_8b_instruct", "llama3_1_8b_instruct"),
    ],
)
def test_a_typo_is_answered_with_the_closest_names(typo, meant):
    with pytest.raises(ValidationError, match=rf"{typo}' is not in the catalog. Did you mean .*{meant}"):
        BaseModelConfig.model_validate({"catalog": typo})


def test_a_repository_is_found_as_well():
    assert find_base_model("Qwen/Qwen3-8B").name == "qwen3_8b"
    with pytest.raises(CatalogNameUnknown, match=r"lists all \d+"):
        find_base_model("someone/something")


def test_an_entry_without_a_verified_commit_asks_for_one_and_says_where_it_is():
    entry = find_base_model("qwen3_8b").model_copy(update={"revision": None})
    with pytest.raises(RevisionUnpinned, match="Qwen/Qwen3-8B/commits/main"):
        entry.pinned()
    assert entry.pinned("1" * 40) == "1" * 40


def test_a_catalog_name_beside_another_source_is_refused():
    with pytest.raises(ValidationError, match="names catalog and directory"):
        BaseModelConfig.model_validate({"catalog": "qwen3_8b", "directory": "models/mine"})
