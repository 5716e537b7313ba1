"""The saved and reloaded merge is compared with base and adapter, by numbers and by text."""

import pytest
import torch
from peft_adapters import save_adapter, write_record

from llm_assets.training.equivalence import check_merge_equivalence, divergence, greedy_agreement, read_prompts
from llm_assets.training.merge import merge_adapter
from llm_assets.training.merge_config import MergeConfig

NF4 = {"type": "nf4", "double_quant": True, "block_size": 64, "compute_dtype": "bfloat16"}
CONFIG = MergeConfig(equivalence_rows=8, greedy_prompts=2, greedy_tokens=6)


@pytest.fixture(scope="module")
def qlora_adapter(tiny_base, tmp_path_factory):
    """Random values in all 14 linear layers: far enough from the base that leaving them out shows."""
    adapter = save_adapter(tiny_base, tmp_path_factory.mktemp("qlora"), lora_alpha=96)
    names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", *(f"self_attn.{part}_proj" for part in "qkvo")]
    modules = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in names]
    parameters = {"compute_dtype": "bfloat16"}
    write_record(adapter, tiny_base, method="qlora", quantized_modules=modules, quantization=NF4, parameters=parameters)
    for path in tiny_base.glob("*token*"):
        (adapter / path.name).write_bytes(path.read_bytes())
    (adapter / "chat_template.jinja").write_bytes((tiny_base / "chat_template.jinja").read_bytes())
    return adapter


@pytest.fixture(scope="module")
def merged(tiny_base, qlora_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("merged")
    merge_adapter(tiny_base, qlora_adapter, out, CONFIG, lambda _: None)
    return out


def test_a_merge_into_what_training_saw_is_equivalent(tiny_base, qlora_adapter, merged, dataset):
    result = check_merge_equivalence(tiny_base, qlora_adapter, merged, dataset, CONFIG, policy="dequantized")
    assert result.passed, result.summary
    assert result.numbers["mean_kl"] < 1e-3
    assert abs(float(result.numbers["loss_delta"])) < 1e-2
    assert [set(row) for row in result.rows] == [{"prompt", "adapter", "merged"}] * 2


def test_the_base_in_place_of_the_merged_model_is_not_equivalent(tiny_base, qlora_adapter, dataset):
    result = check_merge_equivalence(tiny_base, qlora_adapter, tiny_base, dataset, CONFIG, policy="dequantized")
    assert not result.passed
    assert float(result.numbers["mean_kl"]) > CONFIG.max_mean_kl


def test_greedy_texts_are_bounded_where_the_config_says_so(tiny_base, qlora_adapter, dataset):
    loose = {"max_mean_kl": 100, "min_top1_agreement": 0.0, "max_loss_increase": 100}
    config = CONFIG.model_copy(update=loose)
    assert check_merge_equivalence(tiny_base, qlora_adapter, tiny_base, dataset, config, "dequantized").passed
    strict = config.model_copy(update={"min_greedy_agreement": 1.0})
    result = check_merge_equivalence(tiny_base, qlora_adapter, tiny_base, dataset, strict, "dequantized")
    assert not result.passed
    assert float(result.numbers["greedy_agreement"]) < 1


def test_a_merge_into_the_originals_is_judged_by_its_loss(tiny_base, qlora_adapter, merged, dataset):
    config = CONFIG.model_copy(update={"max_mean_kl": 1e-12, "min_top1_agreement": 1.0})
    result = check_merge_equivalence(tiny_base, qlora_adapter, merged, dataset, config, policy="original")
    assert result.passed, result.summary
    strict = config.model_copy(update={"max_loss_increase": float(result.numbers["loss_delta"]) - 1})
    assert not check_merge_equivalence(tiny_base, qlora_adapter, merged, dataset, strict, policy="original").passed


def test_divergence_is_the_one_computed_by_hand():
    expected = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    found = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    kl, agreement = divergence(expected, found)
    assert kl == pytest.approx((0.5 * torch.tensor(2.0).log() + 0.5 * torch.tensor(2 / 3).log()) / 2)
    assert agreement == 0.5


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [([5, 6, 7, 2], [5, 6, 9, 2], 0.5), ([5, 6], [5, 6, 7, 8], 0.5), ([5], [5], 1.0), ([], [], 1.0)],
)
def test_greedy_tokens_agree_up_to_their_first_difference(one, other, share):
    assert greedy_agreement([one], [other]) == share


def test_prompts_end_before_the_answer(dataset):
    from llm_assets.training.packs import NO_LOSS, read_rows

    for prompt, row in zip(read_prompts(dataset, 3), read_rows(dataset, "validation", 3), strict=True):
        assert prompt == row.input_ids[: len(prompt)].tolist()
        assert row.labels[len(prompt)] != NO_LOSS
