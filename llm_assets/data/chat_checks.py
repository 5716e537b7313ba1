"""What must hold of curated conversations: they render, no split leaks into another, and not too much was dropped.

Every check reads the published files again and trusts nothing that curation remembered. All rows are compared; the
cost is a second sketch of each, some 20 µs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.core import CheckResult
from llm_assets.data.chat_rows import read_chat
from llm_assets.data.messages import RowRefused, check_turns
from llm_assets.data.minhash import estimated_similarity, sketch
from llm_assets.data.similarity import said
from llm_assets.data.split_groups import groups_in_two_splits
from llm_assets.data.splits import SPLITS

SAMPLE_ROWS = 20
HELD_OUT = ("test", "validation")
COMPARED_PER_BUCKET = 16


def roles_alternate(chat: Path) -> CheckResult:
    """Every conversation is system?, user, assistant, … with no empty turn, and ends with the assistant."""
    rows, bad, count = 0, [], 0
    for split in SPLITS:
        for row_ids, conversations in read_chat(chat / f"{split}.parquet"):
            for row_id, messages in zip(row_ids, conversations, strict=True):
                rows += 1
                try:
                    check_turns(messages)
                except RowRefused as refused:
                    count += 1
                    if len(bad) < SAMPLE_ROWS:
                        bad.append({"split": split, "row_id": row_id, "problem": str(refused)})
    return CheckResult(
        passed=rows > 0 and not count,
        summary=f"{rows - count} of {rows} conversations have well-formed turns.",
        numbers={"conversations": rows, "bad_conversations": count},
        rows=bad,
    )


def no_split_leakage(
    chat: Path, similarity: float, max_near_share: float, raw_rows: Path | None = None, group_column: str | None = None
) -> CheckResult:
    """No prompt, row id or group stands in two splits, and few held-out rows nearly repeat a training row.

    Args:
        chat: A chat dataset.
        similarity: From which similarity a row nearly repeats another.
        max_near_share: Largest share of held-out rows that may.
        raw_rows: The `rows.parquet` it was made from; needed with `group_column`.
        group_column: Source column whose values stand in one split each.
    """
    held_out = _HeldOut(similarity)
    for split in HELD_OUT:
        for row_ids, conversations in read_chat(chat / f"{split}.parquet"):
            held_out.add(split, row_ids, conversations)
    held_out.close()
    for row_ids, conversations in read_chat(chat / "train.parquet"):
        held_out.compare(row_ids, conversations)
    near, rows = held_out.near, len(held_out.row_ids)
    share = len(near) / rows if rows else 0.0
    torn, torn_groups = 0, list[dict[str, Any]]()
    if raw_rows and group_column:
        torn, torn_groups = groups_in_two_splits(chat, raw_rows, group_column, SAMPLE_ROWS)
    return CheckResult(
        passed=not held_out.leaks and not torn and share <= max_near_share,
        summary=f"{held_out.leaks} rows stand in two splits. {len(near)} of {rows} held-out rows "
        f"({share:.1%}, allowed {max_near_share:.0%}) are at least {similarity:.0%} like a training row."
        + (f" {torn} values of {group_column} stand in two splits." if group_column else ""),
        numbers={
            "exact_leaks": held_out.leaks,
            "near_duplicates": len(near),
            "near_duplicate_share": float(share),
            "held_out_rows": rows,
            **({"torn_groups": torn} if group_column else {}),
        },
        rows=[*torn_groups, *held_out.exact, *near.values()][:SAMPLE_ROWS],
    )


def drop_share(report: Mapping[str, Any], max_share: float) -> CheckResult:
    """Not too many rows were dropped, and every ingested row is either kept or dropped."""
    dropped = sum(report["dropped"].values())
    share = dropped / max(1, report["ingested"])
    lost = report["ingested"] - report["kept"] - dropped
    return CheckResult(
        passed=share <= max_share and lost == 0,
        summary=f"{dropped} of {report['ingested']} rows ({share:.1%}, allowed {max_share:.0%}) were dropped"
        + (f", and {lost} are unaccounted for." if lost else "."),
        numbers={"dropped": dropped, "drop_share": float(share), "unaccounted": lost},
        rows=[{"reason": reason, "rows": rows} for reason, rows in report["dropped"].items()],
    )


class _HeldOut:
    """The held-out rows in memory, a few hundred bytes each, and what was found of them in other splits."""

    def __init__(self, similarity: float):
        self.row_ids: list[str] = []
        self.splits: list[str] = []
        self.leaks, self.exact = 0, list[dict[str, Any]]()
        self.near: dict[int, dict[str, Any]] = {}
        self._similarity = similarity
        self._prompts: dict[int, int] = {}  # key of a prompt, to the row that asks it
        self._places: dict[str, int] = {}
        self._bins: list[np.ndarray] = []
        self._bands: list[np.ndarray] = []

    def add(self, split: str, row_ids: list[str], conversations: list[list[dict[str, Any]]]) -> None:
        what = [said(messages) for messages in conversations]
        for row_id, says in zip(row_ids, what, strict=True):
            self._note_leak(split, row_id, says.prompt_key)
            self._prompts.setdefault(says.prompt_key, len(self.row_ids))
            self._places.setdefault(row_id, len(self.row_ids))
            self.row_ids.append(row_id)
            self.splits.append(split)
        sketches = sketch([says.text for says in what], self._similarity)
        self._bins.append(sketches.bins)
        self._bands.append(sketches.bands)

    def close(self) -> None:
        """Sort the bands for look-up."""
        bands = np.concatenate(self._bands) if self._bands else np.zeros((0, 0), np.uint32)
        self._bins = [np.concatenate(self._bins)] if self._bins else []
        self._order = np.argsort(bands, axis=0, kind="stable")
        self._sorted = np.take_along_axis(bands, self._order, axis=0)

    def compare(self, row_ids: list[str], conversations: list[list[dict[str, Any]]]) -> None:
        """Look for training rows among the held-out ones."""
        what = [said(messages) for messages in conversations]
        for row_id, says in zip(row_ids, what, strict=True):
            self._note_leak("train", row_id, says.prompt_key)
        if not self._bins:
            return
        sketches = sketch([says.text for says in what], self._similarity)
        meets: dict[int, set[int]] = {}
        for band in range(self._sorted.shape[1]):
            keys, order = self._sorted[:, band], self._order[:, band]
            low = np.searchsorted(keys, sketches.bands[:, band], side="left")
            high = np.searchsorted(keys, sketches.bands[:, band], side="right")
            for row in np.flatnonzero(high > low).tolist():
                bucket = order[low[row] : high[row]]
                if len(bucket) > COMPARED_PER_BUCKET:  # other rows and other bands take the others in turn
                    bucket = np.roll(bucket, -row * COMPARED_PER_BUCKET)[:COMPARED_PER_BUCKET]
                meets.setdefault(row, set()).update(n for n in bucket.tolist() if n not in self.near)
        for row, met in meets.items():
            places = np.array(sorted(met), np.int64)
            alike = estimated_similarity(sketches.bins[row], self._bins[0][places]) >= self._similarity
            for place in places[alike].tolist():
                self.near[place] = self._found(place, "train (nearly)", row_ids[row])

    def _note_leak(self, split: str, row_id: str, prompt_key: int) -> None:
        for place in (self._prompts.get(prompt_key), self._places.get(row_id)):
            if place is not None and self.splits[place] != split:
                self.leaks += 1
                if len(self.exact) < SAMPLE_ROWS:
                    found = {"also_in": self.splits[place], "as": self.row_ids[place]}
                    self.exact.append({"row_id": row_id, "split": split, **found})
                return

    def _found(self, place: int, also_in: str, other: str) -> dict[str, Any]:
        return {"row_id": self.row_ids[place], "split": self.splits[place], "also_in": also_in, "as": other}
