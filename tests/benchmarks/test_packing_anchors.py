"""The algorithms packing is compared with are what they are called, and pack every row once."""

import numpy as np
import pytest

from benchmarks.packing import chat_like_lengths, pack_knapsack, pack_next_fit


@pytest.mark.parametrize("pack", [pack_next_fit, pack_knapsack])
def test_every_row_is_packed_once_and_no_pack_overflows(pack):
    lengths = chat_like_lengths(2_500)
    packs = pack(lengths, 2048)
    assert sorted(row for rows in packs for row in rows) == list(range(2_500))
    assert max(lengths[rows].sum() for rows in packs) <= 2048


def test_next_fit_never_looks_back():
    assert pack_next_fit(np.array([4, 3, 2, 2]), 6) == [[0], [1, 2], [3]]


def test_the_knapsack_takes_the_longest_row_that_fits_and_never_mixes_batches():
    assert pack_knapsack(np.array([3, 4, 2, 2]), 6) == [[1, 3], [0, 2]]
    assert len(pack_knapsack(np.full(1_001, 1), 1_001)) == 2
