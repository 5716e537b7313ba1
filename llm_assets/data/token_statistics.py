"""What a tokenized dataset is like in numbers: for a person, for the memory planner, and for the next version's drift.

Lengths are kept as counts in fixed bins a quarter of a power of two wide, so that two versions compare without either's
rows. The drift is the population stability index over about ten of these bins, less what two samples of the same rows
would show by chance.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.data.splits import SPLITS
from llm_assets.data.token_files import TokenFile

PERCENTILES = (1, 10, 50, 90, 99, 100)
BIN_EDGES = np.unique(np.round(2 ** (np.arange(97) / 4))).astype(np.int64)  # 1, 2, 3, 4, 5, 6, 7, 8, 10, ... 2**24
LONGEST_ROWS = 5
PSI_BINS = 10
LENGTHS = ("prompt", "completion", "total")


def split_statistics(file: TokenFile) -> dict[str, Any]:
    """Counts, shares and length percentiles of one split; zeros where it is empty."""
    total, supervised = file.lengths, file.numbers("supervised_tokens")
    prompt, cut = file.numbers("prompt_tokens"), file.numbers("cut_messages")
    tokens, characters = int(total.sum()), int(file.numbers("characters").sum())
    lengths = {"prompt": prompt, "completion": total - prompt, "total": total}
    return {
        "rows": len(file),
        "tokens": tokens,
        "supervised_tokens": int(supervised.sum()),
        "supervised_share": float(supervised.sum() / max(1, tokens)),
        "characters_per_token": float(characters / max(1, tokens)),
        "cut_rows": int((cut > 0).sum()),
        "cut_messages": int(cut.sum()),
        "lengths": {name: _percentiles(values) for name, values in lengths.items()},
        "bins": {name: length_bins(values) for name, values in lengths.items()},
    }


def dataset_statistics(dataset: Path, dropped: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Statistics of all splits, those of the training rows also by themselves, and the longest training rows."""
    files = {split: TokenFile(dataset, split) for split in SPLITS}
    splits = {split: split_statistics(file) for split, file in files.items()}
    train, lengths = splits["train"], files["train"].lengths
    named = ("tokens", "supervised_tokens", "supervised_share", "characters_per_token")
    rows, cut = (sum(split[name] for split in splits.values()) for name in ("rows", "cut_rows"))
    return {
        "rows": {split: values["rows"] for split, values in splits.items()},
        **{name: train[name] for name in named},
        "mean_length_tokens": float(lengths.mean()),
        "longest_row_tokens": int(lengths.max()),
        "percentiles": train["lengths"]["total"],
        "histogram": _histogram(lengths),
        "longest_rows": _longest(files["train"]),
        "cut_rows": cut,
        "truncated_share": float((cut + _too_long(dropped)) / max(1, rows + len(dropped))),
        "splits": splits,
    }


def dropped_statistics(dropped: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Rows left out by reason."""
    return {
        "dropped": dict(sorted(Counter(row["reason"] for row in dropped).items())),
        "dropped_too_long": _too_long(dropped),
    }


def length_bins(lengths: np.ndarray) -> list[int]:
    """Rows per bin of `BIN_EDGES`, without the empty bins at the end."""
    return np.bincount(np.searchsorted(BIN_EDGES, lengths, side="right")).tolist() if len(lengths) else []


def stability_index(now: Sequence[int], before: Sequence[int]) -> float:
    """Population stability index of binned lengths against those before, less what chance alone gives; 0 or more.

    `sum((p - q) * ln(p / q))` over the bins, neighbours joined until each holds a tenth of the rows before. Two samples
    of one population, of m and n rows in k bins, have an expected index of about (k - 1) * (1 / m + 1 / n).
    """
    size = max(len(now), len(before))
    counts = np.array([[*values, *[0] * (size - len(values))] for values in (now, before)], float)
    if not counts.sum(axis=1).all():
        return 0.0
    joined = _joined(counts)
    shares = np.maximum(joined / joined.sum(axis=1, keepdims=True), 1e-4)
    index = float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())
    chance = (joined.shape[1] - 1) * float((1 / joined.sum(axis=1)).sum())
    return max(0.0, index - chance)


def _joined(counts: np.ndarray) -> np.ndarray:
    """Neighbouring bins joined until each holds at least a tenth of the second row; shape `(2, at most 10)`."""
    share, bins, current = counts[1].sum() / PSI_BINS, [], np.zeros(2)
    for column in counts.T:
        current = current + column
        if current[1] >= share:
            bins.append(current)
            current = np.zeros(2)
    if bins:
        bins[-1] = bins[-1] + current
    return np.array(bins or [current]).T


def _percentiles(lengths: np.ndarray) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(lengths, p)) if len(lengths) else 0.0 for p in PERCENTILES}


def _longest(file: TokenFile) -> list[dict[str, Any]]:
    chosen = np.argsort(-file.lengths, kind="stable")[:LONGEST_ROWS]
    row_ids = [row_id for batch in file.batches for row_id in batch["row_id"]]
    return [{"row_id": row_ids[row].as_py(), "tokens": int(file.lengths[row])} for row in chosen.tolist()]


def _too_long(dropped: Sequence[Mapping[str, str]]) -> int:
    return sum(row["reason"] == "too_long" for row in dropped)


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """At most 40 bins of equal width in whole tokens: their left edges, and the rows in each."""
    width = int(lengths.max()) // 40 + 1
    counts = np.bincount(lengths // width)
    return {"edges": [n * width for n in range(len(counts))], "rows": counts.tolist()}
