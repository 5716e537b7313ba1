"""Every way of training ends in one merged model that predicts like what was trained."""

import pytest

from llm_assets.training.equivalence import check_merge_equivalence
from llm_assets.training.merge_choice import merge_by_policy
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merged_checks import check_tokenizer_consistency
from llm_assets.training.trainer import train_adapter

MERGE = MergeConfig(equivalence_rows=8, greedy_prompts=1, greedy_tokens=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "qlora", "use_dora": True, "use_rslora": True},
        {"method": "lora", "trainable_tokens": ("<|im_end|>", "<|im_start|>")},
        {"method": "qlora", "modules_to_save": ("embed_tokens",)},
        {"method": "full", "learning_rate": 1e-3},
    ],
    ids=lambda settings: "-".join(map(str, settings)),
)
def test_what_was_trained_is_what_is_stored(tiny_base, dataset, quick, tmp_path, settings):
    for name in ("adapter", "work", "merged"):
        (tmp_path / name).mkdir()
    config = quick(**settings)
    train_adapter(tiny_base, dataset, tmp_path / "adapter", tmp_path / "work", config, log=lambda _: None)
    record = merge_by_policy(tiny_base, tmp_path / "adapter", dataset, tmp_path / "merged", MERGE, lambda _: None)
    result = check_merge_equivalence(
        tiny_base, tmp_path / "adapter", tmp_path / "merged", dataset, MERGE, policy=record["policy"]
    )
    assert result.passed, result.summary
    assert not record["untied_head"]
    assert check_tokenizer_consistency(tiny_base, tmp_path / "merged", dataset).passed
    other = check_merge_equivalence(tiny_base, tmp_path / "adapter", tiny_base, dataset, MERGE, policy="original")
    assert float(other.numbers["loss_delta"]) > 10 * abs(float(result.numbers["loss_delta"]))
