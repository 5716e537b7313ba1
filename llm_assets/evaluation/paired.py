"""What a difference between two candidates on the same rows is worth: paired bootstrap intervals.

Candidates answer the same rows, so resampling rows (not candidates) removes the rows' difficulty from the interval
(Efron & Tibshirani 1993; Koehn 2004). Single-run differences below about one point are noise; the interval says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A statistic on all rows and its 95 % percentile interval over resampled rows.

    Attributes:
        value: The statistic; None when it is undefined (a ratio to a reference that scores 0).
        low: Lower bound.
        high: Upper bound.
        rows: Rows compared.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain JSON."""
        return asdict(self)


def improvement(scores: Sequence[float], reference: Sequence[float], resamples: int, seed: int) -> Interval:
    """Mean of `scores - reference` over the same rows, both of shape `(rows,)`."""
    difference = np.asarray(scores, dtype=float) - np.asarray(reference, dtype=float)
    if not len(difference):
        return Interval(None, None, None, 0)
    means = difference[_resampled(len(difference), resamples, seed)].mean(axis=1)
    return _interval(float(difference.mean()), means, len(difference))


def recovery(scores: Sequence[float], reference: Sequence[float], resamples: int, seed: int) -> Interval:
    """`mean(scores) / mean(reference)` over the same rows: 1.0 is no loss; undefined when the reference scores 0."""
    ours, theirs = np.asarray(scores, dtype=float), np.asarray(reference, dtype=float)
    if not len(ours) or not theirs.sum():
        return Interval(None, None, None, len(ours))
    drawn = _resampled(len(ours), resamples, seed)
    numerators, denominators = ours[drawn].mean(axis=1), theirs[drawn].mean(axis=1)
    defined = denominators > 0
    return _interval(float(ours.mean() / theirs.mean()), numerators[defined] / denominators[defined], len(ours))


def common(scores: Mapping[str, float], reference: Mapping[str, float]) -> tuple[list[float], list[float]]:
    """Both candidates' scores on the row ids they share, in row id order."""
    shared = sorted(scores.keys() & reference.keys())
    return [scores[row] for row in shared], [reference[row] for row in shared]


def _resampled(rows: int, resamples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, rows, size=(resamples, rows))


def _interval(value: float, statistics: np.ndarray, rows: int) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return Interval(value, float(low), float(high), rows)
