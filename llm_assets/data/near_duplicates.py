"""Which earlier conversations a conversation nearly repeats, over millions of rows with a few bytes of memory each.

Sketches go to scratch files as rows stream by. Then only rows that share a band with another (usually few) are
loaded and compared, in the order the caller decides, so that the caller says who leads. In each bucket of a band the
`LEADERS` newest rows are compared: an upper bound on the time per row, at the price of missing a pair only if it is
crowded out of every bucket it shares.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from llm_assets.data.minhash import BINS, Sketches, band_shape, estimated_similarity

LEADERS = 4
GATHERED_ROWS = 65_536


class SketchStore:
    """Sketches of rows in files of a scratch directory, appended batch by batch."""

    def __init__(self, directory: Path, similarity: float):
        self.similarity, self.rows = similarity, 0
        self.bands = band_shape(similarity)[0]
        self._paths = [directory / "sketches.bin", *(directory / f"band-{n}.bin" for n in range(self.bands))]
        self._files = [path.open("wb") for path in self._paths]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def append(self, made: Sketches) -> None:
        """Add the sketches of the next rows, made for the store's similarity."""
        self._files[0].write(made.bins.tobytes())
        for band, file in enumerate(self._files[1:]):
            file.write(np.ascontiguousarray(made.bands[:, band]).tobytes())
        self.rows += len(made.bins)

    def band(self, number: int) -> np.ndarray:
        """Bucket keys of one band, uint32, shape `(rows,)`."""
        self._files[1 + number].flush()
        return np.fromfile(self._paths[1 + number], np.uint32)

    def sketches(self, rows: np.ndarray) -> np.ndarray:
        """Sketches of some rows, numbers ascending: uint8, shape `(len(rows), 128)`."""
        self._files[0].flush()
        taken = np.empty((len(rows), BINS), np.uint8)
        with self._paths[0].open("rb") as file:
            for start in range(0, self.rows, GATHERED_ROWS):
                block = np.fromfile(file, np.uint8, GATHERED_ROWS * BINS).reshape(-1, BINS)
                low, high = np.searchsorted(rows, (start, start + len(block)))
                taken[low:high] = block[rows[low:high] - start]
        return taken


class NearIndex:
    """Answers which rows added so far a row is like; only rows that share a band with another are ever compared.

    Attributes:
        compared: How many rows that is.
    """

    def __init__(self, store: SketchStore, rows: np.ndarray):
        """Read the store's bands for the given row numbers, ascending; all others are left out."""
        self._similarity = store.similarity
        self._rows = rows[self._rows_that_meet(store, rows)]
        self.compared = len(self._rows)
        self._buckets, buckets = self._numbered_buckets(store, self._rows)
        self._sketches = store.sketches(self._rows)
        self._leaders = np.full((buckets, LEADERS), -1, np.int32)  # places in `_rows`
        self._next = np.zeros(buckets, np.uint8)
        self._place = np.full(store.rows, -1, np.int32)
        self._place[self._rows] = np.arange(len(self._rows))

    def like(self, row: int) -> list[int]:
        """Added rows at least as alike as the store's similarity, in the order of their numbers."""
        place = self._place[row]
        if place < 0:
            return []
        known = self._leaders[self._shared(place)].ravel()
        known = np.unique(known[known >= 0])
        if not len(known):
            return []
        alike = estimated_similarity(self._sketches[place], self._sketches[known]) >= self._similarity
        return self._rows[known[alike]].tolist()

    def add(self, row: int) -> None:
        """Let later rows be compared with this one."""
        place = self._place[row]
        if place >= 0:
            shared = self._shared(place)
            self._leaders[shared, self._next[shared]] = place
            self._next[shared] = (self._next[shared] + 1) % LEADERS

    def _shared(self, place: int) -> np.ndarray:
        buckets = self._buckets[place]
        return buckets[buckets >= 0]

    @staticmethod
    def _rows_that_meet(store: SketchStore, rows: np.ndarray) -> np.ndarray:
        meets = np.zeros(len(rows), bool)
        for band in range(store.bands):
            meets |= _occurs_again(store.band(band)[rows])
        return meets

    @staticmethod
    def _numbered_buckets(store: SketchStore, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """Bucket of each row in each band, int32, -1 where a row is alone; and how many buckets there are."""
        buckets, count = np.full((len(rows), store.bands), -1, np.int32), 0
        for band in range(store.bands):
            keys = store.band(band)[rows]
            shared = np.flatnonzero(_occurs_again(keys))
            found, numbers = np.unique(keys[shared], return_inverse=True)
            buckets[shared, band] = count + numbers
            count += len(found)
        return buckets, count


def _occurs_again(keys: np.ndarray) -> np.ndarray:
    """Whether each key occurs more than once, shape `(n,)`."""
    order = np.argsort(keys, kind="stable")
    equal = keys[order[1:]] == keys[order[:-1]]
    again = np.zeros(len(keys), bool)
    again[order[1:]] |= equal
    again[order[:-1]] |= equal
    return again
