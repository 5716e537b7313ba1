"""Runs of consecutive words as 64-bit numbers, for a whole batch of texts at once.

Every run is a range of bytes, so one running sum over the batch hashes all of them: H(s, e) is the polynomial
sum(byte[k] * X**k for k in s..e) divided by X**s, modulo 2**64. No run ever becomes a Python object, which makes this
some thirty times faster than hashing strings. The cost: of a run longer than 128 KiB, only so much is hashed.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

X = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64
SPACE = 32
WINDOW_BYTES = 1 << 17


def word_runs(texts: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash every run of `words` words; a shorter text is one run, an empty one none.

        words 2, texts ["a b c", "", "d"]  ->  hashes of [a b, b c, d], offsets [0, 2, 2, 3]

    Args:
        texts: Texts whose words are separated by single spaces or line breaks.
        words: Words per run.

    Returns:
        Hashes, uint64, of all runs in order; offsets, int64, shape `(len(texts) + 1,)`: text n's runs are
        `hashes[offsets[n]:offsets[n + 1]]`.
    """
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"\n".join([*encoded, b""]), np.uint8)
    text_starts = np.concatenate([[0], np.cumsum([len(text) + 1 for text in encoded], dtype=np.int64)])
    starts, ends = _words(data)
    first_word = np.searchsorted(starts, text_starts)  # of each text, and the total
    stops = np.repeat(first_word[1:], np.diff(first_word))  # of each word: where its text's words stop
    at = np.arange(len(starts))
    begins_text = np.zeros(len(starts) + 1, bool)
    begins_text[first_word] = True
    heads = np.flatnonzero((at + words <= stops) | begins_text[:-1])
    tails = np.minimum(heads + words, stops[heads]) - 1
    return _hashes(data, starts[heads], ends[tails]), np.searchsorted(heads, first_word)


def mixed(values: np.ndarray) -> np.ndarray:
    """Spread every bit of uint64 numbers over all others: the finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _words(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Byte positions where words start and where they have ended; the data ends with white space or is empty."""
    inside = np.concatenate([[False], data > SPACE])
    turns = np.flatnonzero(inside[1:] != inside[:-1])
    return turns[::2], turns[1::2]


def _hashes(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hash byte ranges, both ends ascending, window by window, so that the sums stay in the processor's cache."""
    powers, inverses = _powers()
    ends = np.minimum(ends, starts + WINDOW_BYTES)
    hashes, low = np.empty(len(starts), np.uint64), 0
    while low < len(starts):
        begin = starts[low]
        high = max(low + 1, int(np.searchsorted(ends, begin + WINDOW_BYTES, side="right")))
        stop = ends[high - 1] - begin
        sums = np.zeros(stop + 1, np.uint64)
        np.cumsum(data[begin : begin + stop] * powers[:stop], out=sums[1:])
        first, last = starts[low:high] - begin, ends[low:high] - begin
        hashes[low:high] = mixed((sums[last] - sums[first]) * inverses[first])
        low = high
    return hashes


@lru_cache(maxsize=1)
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """`X**k` and their inverses modulo 2**64, for the bytes of a window."""
    made = []
    for base in (X, pow(X, -1, 2**64)):
        factors = np.full(WINDOW_BYTES, base, np.uint64)
        factors[0] = 1
        made.append(np.multiply.accumulate(factors))
    return made[0], made[1]
