"""Packs hold every row once, are as full as best fit makes them, and never exceed their capacity."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_assets.data.packing import SequenceTooLong, pack_best_fit, packing_efficiency, shuffle_packs, write_packs


def lengths_of(packs: list[np.ndarray], lengths: list[int]) -> list[list[int]]:
    return [[lengths[row] for row in pack] for pack in packs]


def test_the_example_of_the_docstring():
    lengths = [4, 3, 2, 2, 1]
    assert lengths_of(pack_best_fit(np.array(lengths), 6), lengths) == [[4, 2], [3, 2, 1]]


def plain_best_fit(lengths: np.ndarray, capacity: int) -> int:
    """Packs of best fit decreasing: every row, longest first, into the fullest pack it fits."""
    free: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [f for f in free if f >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(capacity - length)
    return len(free)


@pytest.mark.parametrize(
    ("capacity", "lowest", "highest"), [(512, 1, 512), (512, 36, 122), (1024, 36, 122), (70_000, 1, 70_000)]
)
def test_there_are_no_more_packs_than_plain_best_fit_makes(capacity: int, lowest: int, highest: int):
    lengths = np.random.default_rng(0).integers(lowest, highest + 1, 800)
    packs = pack_best_fit(lengths, capacity)
    assert len(packs) <= plain_best_fit(lengths, capacity)
    assert sorted(np.concatenate(packs).tolist()) == list(range(800))


def test_rows_of_similar_length_fill_their_packs():
    lengths = np.random.default_rng(0).normal(75, 12, 10_000).astype(int)
    assert packing_efficiency(lengths, pack_best_fit(lengths, 1024), 1024) > 0.995


def test_equal_rows_go_to_packs_in_their_order():
    assert [pack.tolist() for pack in pack_best_fit(np.array([2, 3, 2, 3, 2]), 5)] == [[1, 0], [3, 2], [4]]


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


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(lengths=st.lists(st.integers(1, 40), max_size=60), capacity=st.integers(40, 90))
def test_no_pack_overflows_and_every_row_is_in_one(lengths: list[int], capacity: int):
    packs = pack_best_fit(np.array(lengths, int), capacity)
    assert all(sum(lengths[row] for row in pack) <= capacity for pack in packs)
    assert sorted(row for pack in packs for row in pack.tolist()) == list(range(len(lengths)))


def test_boundaries_are_where_each_row_starts_and_the_last_ends(tmp_path: Path):
    lengths = np.array([5, 1, 2, 3, 4])
    write_packs(tmp_path, [np.array([0, 3, 1]), np.array([4]), np.array([2])], lengths)
    stored = pq.read_table(tmp_path / "packs.parquet").to_pylist()
    assert stored == [
        {"rows": [0, 3, 1], "boundaries": [0, 5, 8, 9]},
        {"rows": [4], "boundaries": [0, 4]},
        {"rows": [2], "boundaries": [0, 2]},
    ]
