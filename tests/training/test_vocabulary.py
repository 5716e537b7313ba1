"""Training rows of the vocabulary beside the adapter: all of them, or a few tokens', tied to the head or not."""

import pytest
import torch
from safetensors.torch import load_file

from llm_assets.training import trained_weights
from llm_assets.training.adapted_model import (
    ADAPTER_FILE,
    add_adapter,
    load_adapted,
    load_base,
    token_ids_of,
)
from llm_assets.training.base_checks import trained_special_tokens
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.packs import read_rows
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid


@pytest.fixture(scope="module")
def untied_base(tiny_base, tmp_path_factory):
    """The tiny base with an output head of its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tmp_path_factory.mktemp("untied_base")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(directory)
    return directory


@pytest.fixture
def bases(tiny_base, untied_base):
    return {"tied": tiny_base, "untied": untied_base}


CASES = {
    "tokens, tied": ("tied", {"trainable_tokens": ("<|im_start|>", "<|im_end|>")}, 2 * 128),
    "tokens, untied": ("untied", {"trainable_tokens": ("<|im_end|>",)}, 2 * 128),
    "matrix, tied": ("tied", {"modules_to_save": ("embed_tokens",)}, 512 * 128),
    "matrices, untied": ("untied", {"modules_to_save": ("embed_tokens", "lm_head")}, 2 * 512 * 128),
}


@pytest.mark.parametrize("name", CASES)
def test_trained_rows_come_back_from_the_saved_adapter(bases, dataset, quick, tmp_path, name):
    kind, changes, values = CASES[name]
    base, config = bases[kind], quick(method="qlora", **changes)
    plain = trained_weights.count(add_adapter(load_base(base, "qlora", "bfloat16", device="cpu"), quick()))
    (tmp_path / "out").mkdir()
    report = train_adapter(base, dataset, tmp_path / "out", tmp_path / "work", config, log=lambda _: None)
    saved = load_file(tmp_path / "out" / ADAPTER_FILE)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert report.trainable_parameters == plain + values
    adapted = load_adapted(base, tmp_path / "out", "qlora", "bfloat16")
    found = evaluation_loss(adapted, read_rows(dataset, "validation", config.evaluation_rows))
    assert found == pytest.approx(report.evaluation_loss, rel=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_every_trained_matrix_has_a_gradient_in_float32(bases, quick, name):
    kind, changes, _ = CASES[name]
    config = quick(method="lora", **changes)
    ids = token_ids_of(bases[kind], config.trainable_tokens)
    model = add_adapter(load_base(bases[kind], "lora", "bfloat16", device="cpu"), config, ids).train()
    model(input_ids=torch.arange(64)[None], labels=torch.arange(64)[None], use_cache=False).loss.backward()
    moved = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is not None and "lora_" not in n}
    assert len(moved) == (1 if kind == "tied" else 2 if "lm_head" in str(changes) or ids else 1)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_a_head_that_is_the_embedding_is_not_saved_apart(tiny_base, quick):
    config = quick(method="lora", modules_to_save=("lm_head",))
    with pytest.raises(TrainingConfigInvalid, match=r"ties to its embedding.*Set modules_to_save: \[embed_tokens\]"):
        add_adapter(load_base(tiny_base, "lora", "float32", device="cpu"), config)


def test_a_token_that_is_none_is_refused_by_name(tiny_base):
    with pytest.raises(TrainingConfigInvalid, match=r"names <\|eot\|>, no token of this vocabulary"):
        token_ids_of(tiny_base, ("<|im_end|>", "<|eot|>"))


def test_rows_and_whole_matrices_together_are_refused():
    with pytest.raises(ValueError, match=r"already trains every row; remove training\.trainable_tokens"):
        TrainingConfig(modules_to_save=("embed_tokens",), trainable_tokens=("<|im_end|>",))


def test_the_remedy_of_an_untrained_token_is_yaml_that_trains_it(untied_base, tmp_path):
    """The check's own words, read as a `training` block, name the rows it found untrained."""
    import shutil

    import yaml
    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(untied_base, base)
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][2] = 0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    summary = trained_special_tokens(base).summary
    block = yaml.safe_load(summary[summary.index("{") : summary.index("}") + 1])
    config = TrainingConfig.model_validate(block)
    assert config.trainable_tokens == ("<|im_end|>",)
    result = trained_special_tokens(base, config)
    assert result.passed
    assert result.summary.endswith("are trained, 1 of them by this lineage.")
