import numpy as np
import pytest

from llm_assets.evaluation.paired import common, improvement, recovery


def test_recovery_is_the_ratio_of_means_inside_its_interval():
    result = recovery([1, 1, 0, 1], [1, 1, 1, 1], resamples=2000, seed=0)
    assert result.value == 0.75
    assert result.low is not None and result.high is not None and result.low <= 0.75 <= result.high
    assert result.rows == 4


def test_a_variant_with_the_same_answers_has_recovery_one_without_spread():
    scores = [1, 0, 1, 1, 0]
    assert recovery(scores, scores, resamples=500, seed=1).as_dict() == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "rows": 5,
    }


def test_pairing_makes_the_interval_narrower_than_that_of_independent_samples():
    generator = np.random.default_rng(0)
    reference = generator.integers(0, 2, 400).astype(float)
    better = np.maximum(reference, generator.random(400) < 0.1)
    paired = improvement(better.tolist(), reference.tolist(), resamples=2000, seed=0)
    unpaired = improvement(better.tolist(), generator.permutation(reference).tolist(), resamples=2000, seed=0)
    assert paired.low is not None and paired.high is not None and unpaired.low is not None and unpaired.high is not None
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


def test_the_interval_agrees_with_the_normal_approximation_on_many_rows():
    difference = np.random.default_rng(1).normal(0.2, 1.0, 2000)
    result = improvement(difference.tolist(), np.zeros(2000).tolist(), resamples=4000, seed=0)
    half = 1.96 * difference.std() / np.sqrt(2000)
    assert result.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert result.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


def test_recovery_against_a_reference_that_scores_nothing_is_undefined():
    assert recovery([1, 0], [0, 0], resamples=100, seed=0).value is None
    assert improvement([], [], resamples=100, seed=0).rows == 0


def test_the_same_seed_gives_the_same_interval():
    scores, reference = [1, 0, 1, 1], [0, 0, 1, 1]
    assert improvement(scores, reference, 300, seed=7) == improvement(scores, reference, 300, seed=7)


def test_only_rows_both_candidates_have_are_compared_in_one_order():
    assert common({"b": 1.0, "a": 0.0, "c": 1.0}, {"a": 1.0, "b": 0.5}) == ([0.0, 1.0], [1.0, 0.5])
