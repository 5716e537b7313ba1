"""MinHash sketches of many texts at once, and the bands that make similar ones meet.

One permutation, 128 bins (Li, Owen, Zhang 2012): a text's word runs fall into bins by their hash, and each bin keeps
the smallest. Two sketches agree on a share of bins that estimates the Jaccard similarity of the runs (standard error
0.035 at 0.8), at a cost per run instead of one per run and permutation. A sketch keeps eight bits a bin (b-bit MinHash,
Li and König 2010), so a text costs 128 bytes. Bins left empty say nothing in the estimate; for banding they borrow
from other bins (Shrivastava 2017), so that short texts meet as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm_assets.data.word_runs import mixed, word_runs

BINS = 128
RUN_WORDS = 3
EMPTY = np.uint32(0xFFFFFFFF)
VALUES = 255  # a bin's byte is 1..255; 0 says empty
LEAST_RECALL = 0.99


@dataclass(frozen=True)
class Sketches:
    """Sketches of some texts.

    Attributes:
        bins: uint8, shape `(texts, 128)`; 0 where a bin is empty.
        bands: uint32, shape `(texts, bands)`; texts that agree in one are worth a comparison.
    """

    bins: np.ndarray
    bands: np.ndarray


def sketch(texts: Sequence[str], similarity: float) -> Sketches:
    """Sketch normalised texts, with the bands that find texts at least `similarity` alike."""
    runs, offsets = word_runs(texts, RUN_WORDS)
    text = np.repeat(np.arange(len(texts)), np.diff(offsets))
    smallest = np.full(len(texts) * BINS, EMPTY, np.uint32)
    np.minimum.at(smallest, text * BINS + (runs >> np.uint64(57)).astype(np.int64), runs.astype(np.uint32))
    smallest = smallest.reshape(len(texts), BINS)
    bins = np.where(smallest == EMPTY, 0, 1 + smallest % VALUES).astype(np.uint8)
    return Sketches(bins, _bands(_filled(smallest), similarity))


def estimated_similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Jaccard similarity of one sketch, shape `(128,)`, with others, shape `(n, 128)`: float, shape `(n,)`.

    Two different runs agree in their byte once in 255 times; the estimate is corrected for that.
    """
    both = ((one > 0) & (others > 0)).sum(axis=1)
    either = ((one > 0) | (others > 0)).sum(axis=1)
    equal = ((one == others) & (one > 0)).sum(axis=1)
    true = np.maximum(0.0, (equal - both / VALUES) / (1 - 1 / VALUES))
    return true / np.maximum(either, 1)


@lru_cache(maxsize=64)
def band_shape(similarity: float) -> tuple[int, int]:
    """`(bands, rows)`: the longest bands in which 99 of 100 pairs of this similarity agree at least once.

    A pair of similarity s agrees in one band of r bins with probability s**r, in one of b bands with 1 - (1 - s**r)**b.
    """
    for rows in range(BINS, 1, -1):
        bands = BINS // rows
        if 1 - (1 - similarity**rows) ** bands >= LEAST_RECALL:
            return bands, rows
    return BINS, 1


def _bands(filled: np.ndarray, similarity: float) -> np.ndarray:
    bands, rows = band_shape(similarity)
    factors = mixed(np.arange(1, rows + 1, dtype=np.uint64)) | np.uint64(1)
    values = filled[:, : bands * rows].reshape(len(filled), bands, rows).astype(np.uint64)
    return (mixed((values * factors).sum(axis=2)) >> np.uint64(32)).astype(np.uint32)


def _filled(smallest: np.ndarray) -> np.ndarray:
    """Give each empty bin the value of a bin drawn at random, the same draws for every text."""
    filled, taken = smallest.copy(), smallest != EMPTY
    texts, bins = np.nonzero(~taken & taken.any(axis=1, keepdims=True))
    attempt = 0
    while len(texts):
        attempt += 1
        drawn = (mixed(np.uint64(attempt * BINS) + bins.astype(np.uint64)) >> np.uint64(57)).astype(np.int64)
        found = taken[texts, drawn]
        filled[texts[found], bins[found]] = smallest[texts[found], drawn[found]]
        texts, bins = texts[~found], bins[~found]
    return filled
