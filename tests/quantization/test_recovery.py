"""Recovery of a variant: the ratio, its interval, and every way a variant can fail it."""

import numpy as np
import pytest

from llm_assets.quantization.forward import RowStatistics
from llm_assets.quantization.recovery import paired_interval, recovery


def statistics(correct, losses=None, tokens=10):
    correct = np.asarray(correct)
    return RowStatistics(
        row_ids=[f"row-{index}" for index in range(len(correct))],
        losses=np.asarray(losses if losses is not None else [1.0] * len(correct)),
        correct=correct,
        tokens=np.full(len(correct), tokens),
        predictions=[np.arange(tokens) for _ in correct],
    )


def test_a_lossless_variant_recovers_everything_with_certainty():
    result = recovery(statistics([9, 8, 10] * 20), statistics([9, 8, 10] * 20), min_recovery=0.999, seed=0)
    assert result.passed
    assert (result.numbers["recovery"], result.numbers["recovery_low"], result.numbers["agreement"]) == (1.0, 1.0, 1.0)


def test_recovery_is_the_ratio_of_right_tokens_and_the_loss_is_per_token():
    merged, variant = statistics([10, 10], losses=[2.0, 4.0]), statistics([10, 9], losses=[2.0, 6.0])
    numbers = recovery(merged, variant, min_recovery=0.5, seed=0).numbers
    assert numbers["recovery"] == 19 / 20
    assert numbers["loss_delta"] == pytest.approx(2.0 / 20)
    assert numbers["perplexity_ratio"] == pytest.approx(np.exp(0.1))


def test_a_damaged_variant_fails_and_its_worst_rows_are_shown():
    worse = statistics([10] * 30 + [2] * 10, losses=[1.0] * 30 + [20.0] * 10)
    result = recovery(statistics([10] * 40), worse, min_recovery=0.96, seed=0)
    assert not result.passed
    assert "does not keep 96.0%" in result.summary
    assert {row["row_id"] for row in result.rows} <= {f"row-{index}" for index in range(30, 40)}


def test_few_rows_with_a_good_mean_do_not_pass_by_luck():
    result = recovery(statistics([10, 10, 10, 10]), statistics([10, 10, 10, 9]), min_recovery=0.97, seed=0)
    assert result.numbers["recovery"] > 0.97
    assert not result.passed


def test_a_variant_that_returns_nan_fails_and_names_the_row():
    result = recovery(statistics([10, 10]), statistics([0, 0], losses=[1.0, float("nan")]), min_recovery=0.5, seed=0)
    assert not result.passed
    assert "row-1" in result.summary


def test_a_merged_model_that_knows_nothing_fails_rather_than_dividing_by_zero():
    assert not recovery(statistics([0, 0]), statistics([0, 0]), min_recovery=0.5, seed=0).passed


def test_statistics_of_different_rows_are_refused():
    with pytest.raises(ValueError, match="different rows"):
        recovery(statistics([1, 2]), statistics([1, 2, 3]), min_recovery=0.5, seed=0)


def test_the_interval_is_seeded_and_covers_the_normal_approximation():
    generator = np.random.default_rng(1)
    merged = generator.integers(8, 11, 400)
    variant = merged - (generator.random(400) < 0.1)
    low, high = paired_interval(merged, variant, seed=3)
    assert (low, high) == paired_interval(merged, variant, seed=3)
    ratio = variant.sum() / merged.sum()
    spread = 1.96 * np.std(variant - ratio * merged) / np.sqrt(400) / merged.mean()  # ratio estimator, delta method
    assert low == pytest.approx(ratio - spread, abs=0.002)
    assert high == pytest.approx(ratio + spread, abs=0.002)
