import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from llm_assets.training.base_checks import describe, supported_architecture, trained_special_tokens, untrained_reason

START, END = 1, 2
ROWS = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
UNUSED = (
    np.full((8, 32), 0.7, dtype=np.float32) + np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32) / 1e3
)


@pytest.fixture
def base(tiny_base, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change_config(base: Path, **changes) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


def change_weights(base: Path, change) -> None:
    weights = load_file(base / "model.safetensors")
    change(weights)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def test_an_ordinary_row_counts_as_trained():
    ratio, reason = untrained_reason(ROWS[0], ROWS[1:], UNUSED)
    assert reason == ""
    assert 0.5 < ratio < 2


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (np.zeros(32, dtype=np.float32), "norm"),
        (ROWS[0] * 1e-3, "norm"),
        (UNUSED[3], "no token uses"),
    ],
)
def test_a_row_left_as_it_was_initialised_is_told(row, named):
    assert named in untrained_reason(row, ROWS, UNUSED)[1]


def test_a_row_added_by_mean_resizing_is_told():
    shifted = ROWS + 1.0
    assert "mean of all rows" in untrained_reason(shifted.mean(axis=0) + 1e-4, shifted, UNUSED[:0])[1]


def test_a_base_with_trained_special_tokens_passes(base):
    result = trained_special_tokens(base)
    assert result.passed, result.summary
    assert result.numbers == {"template_tokens": 2, "untrained_tokens": 0}


def test_a_zero_row_of_a_template_token_fails_and_names_the_token_and_the_remedy(base):
    change_weights(base, lambda weights: weights["model.embed_tokens.weight"][END].zero_())
    result = trained_special_tokens(base)
    assert not result.passed
    assert "<|im_end|>" in result.summary
    assert "<|im_start|>" not in result.summary
    assert "trainable_tokens" in result.summary


def test_a_separate_output_row_of_the_end_token_is_checked_too(base):
    def untie(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["lm_head.weight"][END].zero_()

    change_weights(base, untie)
    change_config(base, tie_word_embeddings=False)
    result = trained_special_tokens(base)
    assert not result.passed
    assert [row["matrix"] for row in result.rows if row["verdict"]] == ["output"]


def test_a_llama_is_supported(base):
    assert supported_architecture(base).passed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "mamba"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "no causal language model"),
        ({"quantization_config": {"quant_method": "gptq"}}, "already quantized"),
        ({"auto_map": {"AutoModel": "modeling.X"}}, "code from its repository, which is not there"),
    ],
)
def test_an_architecture_that_some_later_step_does_not_know_fails_by_name(base, changes, named):
    change_config(base, **changes)
    result = supported_architecture(base)
    assert not result.passed
    assert named in result.summary


def test_the_description_reads_parameters_off_the_files(base):
    from transformers import AutoModelForCausalLM

    description = describe(base)
    assert description.parameters == AutoModelForCausalLM.from_pretrained(base).num_parameters()
    assert (description.vocabulary_size, description.context_tokens) == (512, 512)
    assert [row["token"] for row in description.special_tokens if row["in_chat_template"]] == [
        "<|im_start|>",
        "<|im_end|>",
    ]
