from dataclasses import replace

import pytest

from llm_assets.training.isolation import Isolation
from llm_assets.training.loss_check import check_loss
from llm_assets.training.memory_plan import plan_of
from llm_assets.training.model_shape import ModelShape
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport

GOOD = TrainingReport(
    steps=2,
    tokens=100,
    supervised_tokens=50,
    first_loss=3.0,
    final_loss=1.0,
    base_evaluation_loss=3.0,
    evaluation_loss=1.2,
    evaluation_half_width=0.1,
    trainable_parameters=10,
    skipped_steps=0,
    tokens_per_second=1.0,
    model_flops_share=None,
    plan=plan_of(ModelShape(1, 8, 1, 1, 8, 8, 8), TrainingConfig(), 8, 1, False, 2**30, "cpu"),
    measured_memory_bytes=0,
    isolation=Isolation(0.0, 0.0, 3),
    history=[{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}],
)


def test_a_run_that_learned_passes():
    result = check_loss(GOOD, TrainingConfig(max_evaluation_loss=1.5))
    assert result.passed
    assert result.numbers["evaluation_loss"] == 1.2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evaluation_loss": float("nan")}, "a loss is not finite"),
        ({"history": [{"loss": 3.0}, {"loss": float("inf")}]}, "a loss is not finite"),
        ({"final_loss": 3.5}, "the training loss did not fall"),
        ({"evaluation_loss": 3.0}, "the base model is as good"),
        ({"evaluation_loss": 1.6}, "training.max_evaluation_loss is 1.5"),
    ],
)
def test_a_run_that_did_not_is_refused_with_the_reason(change, reason):
    result = check_loss(replace(GOOD, **change), TrainingConfig(max_evaluation_loss=1.5))
    assert not result.passed
    assert reason in result.summary


def test_a_run_without_evaluation_is_judged_by_its_training_loss():
    silent = replace(GOOD, evaluation_loss=None, base_evaluation_loss=None, evaluation_half_width=None)
    result = check_loss(silent, TrainingConfig(evaluation_rows=0))
    assert result.passed
    assert result.summary.startswith("Trained without evaluation")
    assert "evaluation_loss" not in result.numbers
    assert not check_loss(replace(silent, final_loss=3.5), TrainingConfig(evaluation_rows=0)).passed
