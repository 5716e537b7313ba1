"""What must hold of curated conversations: they render, no split leaks into another, and not too much was dropped."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_assets.core import CheckResult
from llm_assets.data.messages import RowRefused, check_turns
from llm_assets.data.similarity import NearDuplicates, content_text, key_of
from llm_assets.data.splits import SPLITS

SAMPLE_ROWS = 20
COMPARED_HELD_OUT_ROWS = 1_000
COMPARED_TRAIN_ROWS = 20_000  # about ten seconds of MinHash


def roles_alternate(chat: Path) -> CheckResult:
    """Every conversation is system?, user, assistant, … with no empty turn, and ends with the assistant."""
    rows, bad = 0, []
    for split in SPLITS:
        for row in _rows(chat, split):
            rows += 1
            try:
                check_turns(row["messages"])
            except RowRefused as refused:
                bad.append({"split": split, "row_id": row["row_id"], "problem": str(refused)})
    return CheckResult(
        passed=rows > 0 and not bad,
        summary=f"{rows - len(bad)} of {rows} conversations have well-formed turns.",
        numbers={"conversations": rows, "bad_conversations": len(bad)},
        rows=bad[:SAMPLE_ROWS],
    )


def no_split_leakage(chat: Path, similarity: float, max_near_share: float) -> CheckResult:
    """No prompt stands in two splits, and few held-out rows nearly repeat a training row.

    Equality is checked on every row; likeness between up to 1,000 held-out and 20,000 training rows, spread evenly.
    """
    exact = _exact_leaks(chat)
    near, compared = _near_leaks(chat, similarity)
    share = len(near) / compared if compared else 0.0
    return CheckResult(
        passed=not exact and share <= max_near_share,
        summary=f"{len(exact)} rows stand in two splits. {len(near)} of {compared} compared held-out rows "
        f"({share:.1%}, allowed {max_near_share:.0%}) are at least {similarity:.0%} like a training row.",
        numbers={
            "exact_leaks": len(exact),
            "near_duplicate_share": float(share),
            "held_out_rows_compared": compared,
        },
        rows=[*exact, *near][:SAMPLE_ROWS],
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


def _exact_leaks(chat: Path) -> list[dict[str, Any]]:
    """Rows whose whole text or prompt occurs in a more protected split; keys of held-out rows are kept in memory."""
    seen: dict[str, tuple[str, str]] = {}
    leaks = []
    for split in ("test", "validation", "train"):
        keys: dict[str, tuple[str, str]] = {}
        for row in _rows(chat, split):
            prompt = key_of(content_text(row["messages"][:-1]))
            if prompt in seen:
                other_split, other = seen[prompt]
                leaks.append({"row_id": row["row_id"], "split": split, "also_in": other_split, "as": other})
            if split != "train":
                keys[prompt] = (split, row["row_id"])
        seen |= keys
    return leaks


def _near_leaks(chat: Path, similarity: float) -> tuple[list[dict[str, Any]], int]:
    """Held-out rows that are like some training row, and how many were compared."""
    index, split_of = NearDuplicates(similarity), {}
    for split in ("validation", "test"):
        for row in _spread(chat, split, COMPARED_HELD_OUT_ROWS // 2):
            split_of[row["row_id"]] = split
            index.add(row["row_id"], content_text(row["messages"]))
    near: dict[str, dict[str, Any]] = {}
    for row in _spread(chat, "train", COMPARED_TRAIN_ROWS) if split_of else ():
        for name in index.like(content_text(row["messages"])):
            near.setdefault(
                name, {"row_id": name, "split": split_of[name], "also_in": "train (nearly)", "as": row["row_id"]}
            )
    return list(near.values()), len(split_of)


def _spread(chat: Path, split: str, most: int) -> Iterator[dict[str, Any]]:
    step = max(1, -(-pq.read_metadata(chat / f"{split}.parquet").num_rows // most))
    for n, row in enumerate(_rows(chat, split)):
        if n % step == 0:
            yield row


def _rows(chat: Path, split: str) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(chat / f"{split}.parquet").iter_batches(2048, columns=["row_id", "messages"]):
        yield from batch.to_pylist()
