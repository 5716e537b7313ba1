import pytest

from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.watch import TrainingDiverged, best_step, evaluations, require_convergence

BFLOAT16 = TrainingConfig()
FLOAT16 = TrainingConfig(compute_dtype="float16")


def history(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_step_and_rows():
    with pytest.raises(TrainingDiverged, match="Gradient norm is inf at step 3, on rows a, b"):
        require_convergence(3, {"loss": 1.0, "grad_norm": float("inf")}, [], BFLOAT16, "rows a, b")


def test_float16_may_overflow_while_its_scale_is_found():
    require_convergence(3, {"loss": 1.0, "grad_norm": float("inf")}, [], FLOAT16, "rows a")


def test_a_loss_that_has_risen_for_good_stops_the_run():
    with pytest.raises(TrainingDiverged, match=r"rose from 2\.000 to 6\.000 by step 20, the last on rows a"):
        require_convergence(20, {"loss": 6.0}, history([2.0] * 10 + [6.0] * 10), BFLOAT16, "rows a")


def test_one_hard_batch_does_not_stop_the_run():
    require_convergence(20, {"loss": 9.0}, history([2.0] * 19 + [9.0]), BFLOAT16, "rows a")


def test_the_best_step_is_the_earliest_of_equals_and_never_the_base():
    log = [
        {"step": 0, "evaluation_loss": 0.1},
        {"step": 5, "evaluation_loss": 2.0},
        {"step": 9, "evaluation_loss": 2.0},
    ]
    assert best_step(log) == 5
    assert evaluations(log)[0] == 0.1
