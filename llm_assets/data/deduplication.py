"""Rows judged against one another: equal ones, near-duplicates, and prompts that another split asks.

One rule decides every conflict: the earlier row stays, so appending rows never drops or moves one that was there. Where
a column names the splits, held-out rows count as earlier. Memory is a few dozen bytes a row, whatever rows say.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from llm_assets.data.near_duplicates import NearIndex, SketchStore
from llm_assets.data.splits import SPLITS, TEST, TRAIN, VALIDATION, SplitConfig, drawn_splits

KEPT, DUPLICATE, NEAR_DUPLICATE, BETWEEN_SPLITS, SAME_PROMPT, QUOTES = range(6)
REASONS = ("kept", "duplicate", "near_duplicate", "between_splits", "contaminated", "contaminated")
NONE = -1
CHUNK_ROWS = 65_536


@dataclass
class RowKeys:
    """What is remembered of each well-formed row, as arrays of shape `(rows,)`.

    Attributes:
        content: 64-bit key of all it says.
        prompt: 64-bit key of all before its answer.
        group: 64-bit key of the rows that stay in one split with it.
        given: The split its own column names, or -1.
    """

    content: np.ndarray
    prompt: np.ndarray
    group: np.ndarray
    given: np.ndarray


@dataclass
class Decision:
    """What became of each row, as arrays of shape `(rows,)`.

    Attributes:
        split: Index into `SPLITS`.
        reason: Index into `REASONS`; 0 where the row is kept.
        other: Row number that a dropped row repeats, or -1.
        asks_first: Whether a row is the first kept one with its prompt.
        quoted: What was found of a row that quotes what is protected.
    """

    split: bytearray
    reason: bytearray
    other: np.ndarray
    asks_first: np.ndarray
    quoted: dict[int, str] = field(default_factory=dict)

    def detail(self, row: int, row_ids: "RowIds") -> str:
        """One sentence on why a row was dropped."""
        if self.reason[row] == QUOTES:
            return self.quoted[row]
        other = int(self.other[row])
        name, split = row_ids[other], SPLITS[self.split[other]]
        return {
            DUPLICATE: f"of {name}",
            NEAR_DUPLICATE: f"of {name}",
            BETWEEN_SPLITS: f"like {name} of {split}, while its group is in {SPLITS[self.split[row]]}",
            SAME_PROMPT: f"asks what {name} of {split} asks",
        }[self.reason[row]]


class RowIds:
    """Row ids by row number, as chunks of Arrow text: 20 bytes a row instead of 70."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._starts = [0]

    def append(self, ids: pa.Array) -> None:
        """Add the ids of the next rows."""
        self._chunks.append(ids)
        self._starts.append(self._starts[-1] + len(ids))

    def __getitem__(self, row: int) -> str:
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._chunks[chunk][row - self._starts[chunk]].as_py()


def decide(
    keys: RowKeys,
    config: SplitConfig,
    sketches: SketchStore | None = None,
    keep_together: bool = False,
    log: Callable[[str], None] = print,
) -> Decision:
    """Give every row its split, and drop those that repeat an earlier one.

    Args:
        keys: What rows say.
        config: How splits are drawn.
        sketches: The rows' sketches; near-duplicates are not looked for without them.
        keep_together: Keep near-duplicates, in the split of the first, instead of dropping them.
        log: Told about the comparison.
    """
    order = np.argsort(-keys.given.astype(np.int8), kind="stable").astype(np.int32)  # held-out rows first
    first = first_of(keys.content, order)
    fresh = order[first[order] == order]
    drawn = np.where(keys.given >= 0, keys.given, drawn_splits(keys.group, config)).astype(np.uint8)
    other = np.where(first == np.arange(len(first)), NONE, first)
    decision = Decision(bytearray(drawn), bytearray(len(first)), other, np.zeros(len(first), bool))
    np.frombuffer(decision.reason, np.uint8)[decision.other >= 0] = DUPLICATE
    near = NearIndex(sketches, np.sort(fresh)) if sketches else None
    if near:
        log(f"near-duplicates: {near.compared} of {len(fresh)} different rows are worth a comparison")
    _Decider(decision, keys, config, near, keep_together).run(fresh)
    log(f"compared {len(first)} rows: {len(first) - decision.reason.count(KEPT)} repeat an earlier one")
    return decision


def first_of(keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The first row, in the given order, of those with the same key: int32, shape `(n,)`; itself for rows left out."""
    sorted_rows = order[np.argsort(keys[order], kind="stable")]
    sorted_keys = keys[sorted_rows]
    starts = np.zeros(len(order), np.int64)
    starts[1:] = np.where(sorted_keys[1:] != sorted_keys[:-1], np.arange(1, len(order)), 0)
    first = np.arange(len(keys), dtype=np.int32)
    first[sorted_rows] = sorted_rows[np.maximum.accumulate(starts)]
    return first


class _Decider:
    """One walk over the rows, in order; each looks only at rows before it."""

    def __init__(
        self, decision: Decision, keys: RowKeys, config: SplitConfig, near: NearIndex | None, keep_together: bool
    ):
        self.decision, self.keys, self.near, self.keep_together = decision, keys, near, keep_together
        self._room = {VALIDATION: config.validation_rows, TEST: config.test_rows}
        self._asked_by = np.full(len(keys.prompt), NONE, np.int32)  # by the first row of a prompt: the first one kept

    def run(self, order: np.ndarray) -> None:
        """Decide the rows in order."""
        groups, prompts = first_of(self.keys.group, order), first_of(self.keys.prompt, order)
        for start in range(0, len(order), CHUNK_ROWS):
            rows = order[start : start + CHUNK_ROWS]
            for row, group, prompt in zip(rows.tolist(), groups[rows].tolist(), prompts[rows].tolist(), strict=True):
                self._place(row, group, prompt)

    def _place(self, row: int, group: int, prompt: int) -> None:
        split = self.decision.split
        alike = self.near.like(row) if self.near else []
        if self.keys.given[row] < 0:
            split[row] = split[group] if group != row else self._opened(row, alike)
        if alike and not self.keep_together:
            return self._drop(row, NEAR_DUPLICATE, alike[0])
        for other in alike:
            if split[other] != split[row]:
                return self._drop(row, BETWEEN_SPLITS, other)
        asked_by = self._asked_by[prompt]
        if asked_by >= 0 and split[asked_by] != split[row]:
            return self._drop(row, SAME_PROMPT, asked_by)
        if asked_by < 0:
            self._asked_by[prompt] = row
            self.decision.asks_first[row] = True
        if self.near:
            self.near.add(row)
        if (room := self._room.get(split[row])) is not None:
            self._room[split[row]] = room - 1
        return None

    def _opened(self, row: int, alike: list[int]) -> int:
        """Split of a group that this row is the first of."""
        if self.keep_together and alike:
            return self.decision.split[alike[0]]
        drawn = self.decision.split[row]
        room = self._room.get(drawn)
        return TRAIN if room is not None and room <= 0 else drawn

    def _drop(self, row: int, reason: int, other: int) -> None:
        self.decision.reason[row], self.decision.other[row] = reason, other
