import pytest

from llm_assets.training import StudyConfig, TrainingConfig

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def test_what_would_change_the_tokens_of_a_trial_is_not_searched():
    with pytest.raises(ValueError, match="names batch_packs, which a study does not search"):
        StudyConfig.model_validate({"space": {"batch_packs": {"choices": [1, 2]}}})


def test_an_empty_range_is_refused_with_its_ends():
    with pytest.raises(ValueError, match=r"range 0\.1 to 0\.01"):
        StudyConfig.model_validate({"space": {"learning_rate": {"low": 0.1, "high": 0.01}}})


def test_zero_on_a_log_scale_is_refused():
    with pytest.raises(ValueError, match="above 0 for a log scale"):
        StudyConfig.model_validate({"space": {"dropout": {"low": 0.0, "high": 0.1, "log": True}}})


def test_the_first_trial_has_the_training_block_s_own_parameters():
    study = StudyConfig.model_validate({"space": {**RATE, "alpha": {"choices": [16, 32]}}})
    assert study.require_defaults(TrainingConfig(learning_rate=1e-3, rank=8)) == {"learning_rate": 1e-3, "alpha": 16}


def test_a_training_block_outside_the_space_is_refused_with_value_and_range():
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1, .*'high': 0\.01.*widen the range"):
        StudyConfig.model_validate({"space": RATE}).require_defaults(TrainingConfig(learning_rate=0.1))


def test_a_trial_gets_its_share_of_the_steps_and_its_evaluations():
    study = StudyConfig(budget_share=0.2, evaluations=4)
    assert study.trial_steps(250) == 50
    assert study.steps_per_evaluation(250) == 12
    assert study.trial_steps(1) == 1
