import pytest

from llm_assets.training import StudyConfig, TrainingConfig
from llm_assets.training.search_space import restored, stored
from llm_assets.training.study_config import Budget

RATE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def space(**entries) -> StudyConfig:
    return StudyConfig.model_validate({"space": entries})


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "space is empty.*leave space out"),
        (
            {"lerning_rate": {"choices": [0.1]}},
            "lerning_rate, which is no field of training. Did you mean learning_rat",
        ),
        ({"zzz": {"choices": [1]}}, "zzz, which is no field of training. Fields are method, rank"),
        ({"processes": {"choices": [1, 2]}}, "names processes, which changes where and how .* Search another field"),
        ({"max_steps": {"choices": [1, 2]}}, "names max_steps, which the study sets .* search another field"),
        ({"learning_rate": {"low": 0.1, "high": 0.01}}, r"range 0\.1 to 0\.01\. low must be below high"),
        ({"dropout": {"low": 0.0, "high": 0.1, "log": True}}, "above 0 for a log scale"),
        ({"rank": {"low": 4, "high": 30, "step": 8}}, "4 to 30 in steps of 8. high must be a whole number of steps"),
        ({"learning_rate": {"low": 0.1, "high": 0.2, "log": True, "step": 0.1}}, "without log"),
        ({"scheduler": {"low": 0, "high": 1}}, "scheduler is a range, and training.scheduler takes no numbers"),
        ({"rank": {"choices": ["8", "16"]}}, "offers '8', which training.rank does not take: .*valid integer"),
        ({"rank": {"low": 0.5, "high": 8.0}}, "offers 0.5, which training.rank does not take"),
        ({"dropout": {"low": 0.0, "high": 1.0}}, "offers 1.0, which training.dropout .* less than 1"),
        ({"scheduler": {"choices": ["cosin"]}}, "offers 'cosin', which training.scheduler does not take"),
        ({"use_dora": {"choices": [1]}}, "offers 1, which training.use_dora does not take"),
    ],
)
def test_a_space_that_training_would_not_take_is_refused_with_value_and_remedy(entries, said):
    with pytest.raises(ValueError, match=said):
        space(**entries)


def test_no_trials_and_no_parallel_trials_are_refused():
    with pytest.raises(ValueError, match="trials"):
        StudyConfig(trials=0)
    with pytest.raises(ValueError, match=r"parallel_trials is 0\. Give 1 or more, or auto"):
        StudyConfig(parallel_trials=0)


def test_a_value_that_contradicts_the_training_block_is_refused_before_a_trial():
    study = space(use_dora={"choices": [False, True]})
    with pytest.raises(ValueError, match=r"use_dora offers True, .*full trains every weight"):
        study.require_defaults(TrainingConfig(method="full"))


def test_the_first_trial_has_the_training_block_s_own_parameters():
    study = StudyConfig.model_validate({"space": {**RATE, "alpha": {"choices": [16, 32]}}})
    assert study.require_defaults(TrainingConfig(learning_rate=1e-3, rank=8)) == {"learning_rate": 1e-3, "alpha": 16}


def test_a_training_block_outside_the_space_is_refused_with_value_and_range():
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1, .*'high': 0\.01.*widen the range"):
        StudyConfig.model_validate({"space": RATE}).require_defaults(TrainingConfig(learning_rate=0.1))


def test_any_training_field_can_be_searched_and_comes_back_as_it_was_written():
    study = space(
        target_modules={"choices": ["all-linear", ["q_proj", "v_proj"]]},
        alpha={"choices": [None, 16]},
        warmup_share={"low": 0, "high": 0.2, "step": 0.1},
    )
    kept = {"target_modules": stored(("q_proj", "v_proj")), "alpha": None, "warmup_share": 0.1}
    found = restored(study.space, kept)
    assert found == {"alpha": None, "target_modules": ["q_proj", "v_proj"], "warmup_share": 0.1}
    assert TrainingConfig().with_parameters(found).target_modules == ("q_proj", "v_proj")


def test_trials_of_every_batch_size_get_the_same_packs_and_the_same_evaluations():
    study = space(batch_packs={"choices": [1, 2, 4]}).model_copy(update={"budget_share": 0.5})
    training = TrainingConfig(batch_packs=2, accumulation_steps=2, max_steps=32)
    budget = study.budget(training, packs=100, tokens_per_pack=50.0)
    assert budget == Budget(packs=64, evaluations=4)
    for packs in (1, 2, 4):
        config = training.with_parameters({"batch_packs": packs})
        steps, every = budget.steps(config)
        assert steps * config.packs_per_step == 64
        assert steps // every == 4


def test_a_budget_in_tokens_counts_packs_of_the_dataset():
    study = StudyConfig(trial_tokens=6400, evaluations=2)
    assert study.budget(TrainingConfig(batch_packs=1, accumulation_steps=8), 1000, 100.0) == Budget(64, 2)


def test_a_budget_of_less_than_a_step_is_one_step_with_one_evaluation():
    budget = StudyConfig(budget_share=0.01).budget(
        TrainingConfig(batch_packs=2, accumulation_steps=4, max_steps=3), 9, 1.0
    )
    assert budget == Budget(packs=8, evaluations=1)


def test_a_storage_url_takes_its_password_from_the_environment(monkeypatch):
    study = StudyConfig(storage_url="postgresql://u:${STUDY_PASSWORD}@db/optuna")
    with pytest.raises(ValueError, match="STUDY_PASSWORD, which the environment of this step does not have"):
        study.resolved_storage_url()
    monkeypatch.setenv("STUDY_PASSWORD", "hunter2")
    assert study.resolved_storage_url() == "postgresql://u:hunter2@db/optuna"
    assert "hunter2" not in repr(study) + study.model_dump_json()


def test_a_storage_that_is_no_url_is_refused():
    with pytest.raises(ValueError, match="storage_url is no URL"):
        StudyConfig(storage_url="/tmp/study.db")
