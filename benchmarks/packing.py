"""Packing 20,000 chat-like rows: best fit over all rows, against filling in order and against a knapsack per batch.

Unused space is computed like tokens, so a pack that is 0.8 full costs a quarter more training time. The anchors are
written out here, each as its project describes it.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks._harness import Row, cpu_seconds, interleaved, main
from llm_assets.data.packing import pack_best_fit, packing_efficiency

CAPACITY_TOKENS = 2048
BATCH_ROWS = 1000
NEXT_FIT, KNAPSACK = "next-fit packing (as in torchtune)", "greedy knapsack per 1,000 rows (as in LLaMA-Factory)"


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Efficiency and CPU time of the three algorithms on the same lengths."""
    lengths = chat_like_lengths(5_000 if quick else 20_000)

    def side(pack: Callable[[np.ndarray, int], Sequence[Sequence[int] | np.ndarray]]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            began, repeats = cpu_seconds(), 5 if quick else 20
            for _ in range(repeats):
                pack(lengths, CAPACITY_TOKENS)
            microseconds = (cpu_seconds() - began) / repeats / len(lengths) * 1e6
            packs = [np.asarray(rows) for rows in pack(lengths, CAPACITY_TOKENS)]
            efficiency = packing_efficiency(lengths, packs, CAPACITY_TOKENS)
            return {"efficiency": efficiency, "microseconds": microseconds}

        return run

    sides = {"ours": side(pack_best_fit), NEXT_FIT: side(pack_next_fit), KNAPSACK: side(pack_knapsack)}
    found = interleaved(sides, rounds=2 if quick else 7)
    rows = []
    for anchor, efficiency_goal, time_goal in ((NEXT_FIT, 1.15, 10.0), (KNAPSACK, 1.0, 2.0)):
        full = (found["ours"]["efficiency"], found[anchor]["efficiency"])
        spent = (found["ours"]["microseconds"], found[anchor]["microseconds"])
        filled, packed = "Packing: share of the packs filled", "Packing: time"
        rows.append(Row(filled, *full, anchor, "tokens/capacity", "higher", efficiency_goal))
        rows.append(Row(packed, *spent, anchor, "CPU µs/row", "lower", time_goal))
    return rows


def chat_like_lengths(rows: int) -> np.ndarray:
    """Seeded lengths from 8 to `CAPACITY_TOKENS`, log-normal, mean about 480 tokens."""
    drawn = np.random.default_rng(0).lognormal(5.8, 0.9, rows)
    return np.clip(drawn, 8, CAPACITY_TOKENS).astype(np.int64)


def pack_next_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Fill one pack in row order; close it at the first row that does not fit."""
    packs: list[list[int]] = []
    free = 0
    for row, length in enumerate(lengths.tolist()):
        if length > free:
            packs.append([])
            free = capacity
        packs[-1].append(row)
        free -= length
    return packs


def pack_knapsack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """In every batch of 1,000 rows, fill each pack with the longest row that still fits, until none does."""
    packs: list[list[int]] = []
    listed = lengths.tolist()
    for first in range(0, len(listed), BATCH_ROWS):
        left = sorted((length, first + place) for place, length in enumerate(listed[first : first + BATCH_ROWS]))
        while left:
            pack: list[int] = []
            free = capacity
            while (place := bisect_right(left, (free, len(listed))) - 1) >= 0:
                length, row = left.pop(place)
                free -= length
                pack.append(row)
            packs.append(pack)
    return packs


if __name__ == "__main__":
    main("packing", measure)
