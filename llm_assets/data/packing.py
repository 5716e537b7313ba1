"""Sequences share training rows so that little of a batch is padding: best fit decreasing over all rows at once.

Counting sort and a bit mask of free spaces make it linear in rows, so all of them are packed at once. Attention must be
kept inside each sequence by the trainer; the check `pack_isolation` proves that it is.
"""

from collections.abc import Sequence

import numpy as np

from llm_assets.core import LLMAssetsError


class SequenceTooLong(LLMAssetsError):
    """A sequence does not fit into a pack."""


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Group sequences into packs of at most `capacity` tokens, longest first, each into the fullest pack it fits.

        capacity 6, lengths [4, 3, 2, 2, 1]  ->  packs of lengths [[4, 2], [3, 2, 1]]

    Deterministic: equal lengths go by row, and of equally full packs the one filled last.
    Needs at most about 11/9 of the fewest possible packs.

    Args:
        lengths: Token count of each sequence, shape `(n,)`; every value in `1..capacity`.
        capacity: Tokens per pack.

    Returns:
        Row indices of each pack, int32; every row exactly once, packs in the order they were opened.

    Raises:
        SequenceTooLong: a length exceeds `capacity`, or is no length; names the row and the two ways out.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    unfit = np.flatnonzero((lengths > capacity) | (lengths < 1))
    if len(unfit):
        raise SequenceTooLong(
            f"Row {unfit[0]} has {lengths[unfit[0]]} tokens; a pack holds 1 to {capacity}. "
            "Raise tokenization.pack_length_tokens, or lower tokenization.max_length_tokens to drop such rows."
        )
    packs: list[list[int]] = []
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs by free tokens
    spaces = 0  # bit f is set where with_space[f] holds a pack
    spare = (capacity - lengths).astype(np.uint16 if capacity < 2**16 else np.int64)  # 16 bits: a counting sort
    for row in np.argsort(spare, kind="stable").tolist():
        length = int(lengths[row])
        fitting = spaces >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            pack = with_space[free].pop()
            if not with_space[free]:
                spaces ^= 1 << free
            packs[pack].append(row)
        else:
            free, pack = capacity, len(packs)
            packs.append([row])
        left = free - length
        if left:
            with_space[left].append(pack)
            spaces |= 1 << left
    return [np.asarray(pack, dtype=np.int32) for pack in packs]


def shuffle_packs(packs: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Packs in a seeded order; best fit leaves them sorted by length, which is no order to train in."""
    return [packs[n] for n in np.random.default_rng(seed).permutation(len(packs))]


def packing_efficiency(lengths: np.ndarray, packs: Sequence[np.ndarray], capacity: int) -> float:
    """Share of the packs' capacity that holds tokens, 0 to 1."""
    return float(np.sum(lengths)) / (len(packs) * capacity) if packs else 0.0
