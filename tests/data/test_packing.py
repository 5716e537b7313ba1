"""Packs hold every row once, are as full as best fit makes them, and never exceed their capacity."""

import numpy as np
import pytest

from llm_assets.data.packing import SequenceTooLong, pack_best_fit, packing_efficiency, shuffle_packs


def lengths_of(packs: list[np.ndarray], lengths: list[int]) -> list[list[int]]:
    return [[lengths[row] for row in pack] for pack in packs]


def test_the_example_of_the_docstring():
    lengths = [4, 3, 2, 2, 1]
    assert lengths_of(pack_best_fit(np.array(lengths), 6), lengths) == [[4, 2], [3, 2, 1]]


@pytest.mark.parametrize("capacity", [512, 70_000])
def test_packs_equal_those_of_a_plain_best_fit(capacity: int):
    """Reference: scan all packs for the fullest that fits."""
    lengths = np.random.default_rng(0).integers(1, capacity + 1, 800)
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [f for f in free if f >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(capacity - length)
    packs = pack_best_fit(lengths, capacity)
    assert sorted(capacity - lengths[p].sum() for p in packs) == sorted(free)
    assert sorted(np.concatenate(packs).tolist()) == list(range(800))


def test_packs_of_chat_like_lengths_are_nearly_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.8, 0.9, 20_000), 8, 2048).astype(int)
    assert packing_efficiency(lengths, pack_best_fit(lengths, 2048), 2048) > 0.995


def test_shuffling_is_seeded_and_loses_no_pack():
    packs = pack_best_fit(np.full(50, 3), 4)
    first, again, other = (shuffle_packs(packs, seed) for seed in (1, 1, 2))
    assert [p.tolist() for p in first] == [p.tolist() for p in again] != [p.tolist() for p in other]
    assert sorted(p[0] for p in first) == list(range(50))


def test_a_sequence_that_fits_no_pack_is_named_with_both_ways_out():
    with pytest.raises(SequenceTooLong, match=r"Row 1 has 7 tokens.*pack_length_tokens.*max_length_tokens"):
        pack_best_fit(np.array([3, 7]), 6)
    with pytest.raises(SequenceTooLong, match="Row 0 has 0 tokens"):
        pack_best_fit(np.array([0]), 6)


def test_no_rows_make_no_packs():
    assert pack_best_fit(np.array([], int), 6) == [] and packing_efficiency(np.array([]), [], 6) == 0.0
