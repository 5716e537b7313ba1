"""What curation left of the rows, step by step, for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_assets.data.chat_rows import batches, messages_of
from llm_assets.data.filters import characters

STEPS = {  # reasons by step, in the order rows meet them; what is not named here is a row that did not read
    "SQL predicate": ("where",),
    "readable": (),
    "length": tuple(f"too_{size}_{what}" for size in ("short", "long") for what in ("chars", "answer_chars", "turns")),
    "characters and language": ("damaged_text", "script", "language"),
    "repetition": ("repeated_lines", "repeated_runs", "compressible"),
    "phrases": ("refusal", "phrase"),
    "Python predicate": ("predicate",),
    "equal rows": ("duplicate",),
    "near-duplicates": ("near_duplicate",),
    "leakage": ("between_splits", "contaminated"),
}
SAMPLED_ROWS = 5_000


def funnel(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per step that dropped rows, from the rows ingested to those kept.

    Args:
        report: The `report.json` of a chat dataset.
    """
    named = {reason for reasons in STEPS.values() for reason in reasons}
    left = report["ingested"]
    lines = [{"step": "ingested", "dropped": 0, "rows_left": left, "share_left": 1.0, "reasons": ""}]
    for step, reasons in STEPS.items():
        counts = {
            reason: rows
            for reason, rows in report["dropped"].items()
            if reason in reasons or (step == "readable" and reason not in named)
        }
        if counts:
            left -= sum(counts.values())
            shown = ", ".join(f"{reason} {rows}" for reason, rows in counts.items())
            share = left / max(1, report["ingested"])
            lines.append(
                {
                    "step": step,
                    "dropped": sum(counts.values()),
                    "rows_left": left,
                    "share_left": share,
                    "reasons": shown,
                }
            )
    return lines


def split_sizes(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line per split: its rows, their share of the kept ones, and percentiles of their length in characters."""
    return [
        {
            "split": split,
            "rows": rows,
            "share": rows / max(1, report["kept"]),
            **{f"characters_{name}": size for name, size in report["characters"].get(split, {}).items()},
        }
        for split, rows in report["splits"].items()
    ]


def sampled_lengths(path: Path) -> list[int]:
    """Characters of the first conversations of a split's file."""
    lengths: list[int] = []
    for batch in batches(path, ["messages"]):
        lengths += [characters(messages) for messages in messages_of(batch)]
        if len(lengths) >= SAMPLED_ROWS:
            break
    return lengths[:SAMPLED_ROWS]
