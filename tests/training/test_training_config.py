import pytest

from llm_assets.training import TrainingConfig


def test_epochs_and_steps_together_are_refused_with_both_values():
    with pytest.raises(ValueError, match=r"epochs is 2.0 and training.max_steps is 10"):
        TrainingConfig(epochs=2, max_steps=10)


def test_dora_without_an_adapter_is_refused():
    with pytest.raises(ValueError, match="has no adapter: remove use_dora"):
        TrainingConfig(method="full", use_dora=True)


def test_float16_with_steps_left_out_is_refused_with_the_remedy():
    with pytest.raises(
        ValueError, match=r"skip_loss_spikes 2\.0 leaves .*compute_dtype float16 .*Use bfloat16, or remove"
    ):
        TrainingConfig(compute_dtype="float16", skip_loss_spikes=2)


def test_an_unknown_key_is_refused():
    with pytest.raises(ValueError, match="lerning_rate"):
        TrainingConfig.model_validate({"lerning_rate": 1e-4})


def test_steps_cover_every_pack_of_every_epoch():
    config = TrainingConfig(epochs=3, batch_packs=2, accumulation_steps=4)
    assert config.packs_per_step == 8
    assert config.steps(packs=20) == 8  # 60 packs in steps of 8


def test_two_epochs_are_trained_when_neither_epochs_nor_steps_are_given():
    assert TrainingConfig(batch_packs=1, accumulation_steps=1).steps(packs=10) == 20


def test_the_adapter_scale_is_twice_the_rank_unless_given():
    assert TrainingConfig(rank=8).lora_alpha == 16
    assert TrainingConfig(rank=8, alpha=8).lora_alpha == 8


def test_replaced_parameters_are_checked_again():
    assert TrainingConfig().with_parameters({"rank": 64}).rank == 64
    with pytest.raises(ValueError, match="learning_rate"):
        TrainingConfig().with_parameters({"learning_rate": -1.0})
