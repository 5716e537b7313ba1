"""Rows that have not changed since the last published dataset keep their tokens, byte for byte.

A row is told by the digest of its conversation, and only within the same tokenizer, template, settings and code; so the
result is that of a full rebuild. The tokens come from the published artifact itself: there is no other cache. The cost
is 16 bytes per row on disk, and 24 per row in memory while a dataset is made.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_assets.data.splits import SPLITS
from llm_assets.data.token_files import DIGEST_BYTES, NUMBERS, TokenColumns, TokenFile, TokensUnreadable

ABSENT = -1


class EarlierTokens:
    """The rows of a published dataset by the digest of their conversation."""

    def __init__(self, files: Sequence[TokenFile]):
        batches = [batch for file in files for batch in file.batches]
        self._columns = [_Columns(batch) for batch in batches]
        stored = [batch["source_digest"].to_pylist() for batch in batches]
        keys = _as_integers([digest for digests in stored for digest in digests])
        self._order = np.argsort(keys[:, 0], kind="stable")
        self._keys = keys[self._order]
        self._starts = np.cumsum([0, *map(len, stored)])

    @classmethod
    def read(cls, published: Path | None, rendering: str) -> "EarlierTokens | None":
        """Open a published dataset; None where there is none, or it was rendered otherwise."""
        if published is None or not (published / "statistics.json").exists():
            return None
        if json.loads((published / "statistics.json").read_text()).get("rendering_sha256") != rendering:
            return None
        try:
            return cls([TokenFile(published, split) for split in SPLITS])
        except TokensUnreadable:  # published before rows were stored this way
            return None

    def find(self, digests: Sequence[bytes]) -> np.ndarray:
        """Where each conversation is, or -1; int64, shape `(digests,)`."""
        wanted = _as_integers(digests)
        if not len(self._keys) or not len(wanted):
            return np.full(len(wanted), ABSENT)
        place = np.minimum(np.searchsorted(self._keys[:, 0], wanted[:, 0]), len(self._keys) - 1)
        same = (self._keys[place] == wanted).all(axis=1)
        return np.where(same, self._order[place], ABSENT)

    def runs(self, places: np.ndarray) -> list[tuple[int, int]]:
        """Stretches of rows, as `(first, after last)`, that are all new or lie together in a published batch."""
        batch_of = np.searchsorted(self._starts, places, side="right")
        before, after = places[:-1], places[1:]
        together = (before != ABSENT) & (after == before + 1) & (batch_of[:-1] == batch_of[1:])
        borders = np.flatnonzero(~(together | ((before == ABSENT) & (after == ABSENT)))) + 1
        return list(pairwise([0, *borders.tolist(), len(places)]))

    def rows(self, place: int, count: int) -> TokenColumns:
        """The tokens of rows that lie together, from a place that `find` gave; views into the published file."""
        batch = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._columns[batch].rows(place - int(self._starts[batch]), count)


class _Columns:
    """One published batch as flat arrays."""

    def __init__(self, batch: pa.RecordBatch):
        self._ids, self._spans = (_flat(batch[name]) for name in ("input_ids", "spans"))
        self._numbers = {name: batch[name].to_numpy() for name in NUMBERS}

    def rows(self, first: int, count: int) -> TokenColumns:
        last = first + count
        (ids, lengths), (spans, span_lengths) = (
            (values[offsets[first] : offsets[last]], np.diff(offsets[first : last + 1]))
            for values, offsets in (self._ids, self._spans)
        )
        numbers = {name: values[first:last] for name, values in self._numbers.items()}
        return TokenColumns(ids, lengths, spans, span_lengths, numbers)


def conversation_digests(batch: pa.RecordBatch) -> list[bytes]:
    """BLAKE2 digest of each row's `messages` and `tools`, taken from their Arrow buffers.

    A message's fields are hashed with their lengths, so that no two conversations share a digest by shifting text.
    """
    messages, tools = batch["messages"], batch["tools"]
    offsets = messages.offsets.to_numpy()
    fields = [_Text(field) for field in messages.values.flatten()]
    tools_text = _Text(tools)
    lengths = np.ascontiguousarray(np.stack([field.lengths for field in fields], axis=1))
    filled = [field for field in fields if len(field.bytes)]
    digests = []
    for row, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        hashed = hashlib.blake2b(lengths[first:last].data, digest_size=DIGEST_BYTES)
        for field in filled:
            hashed.update(field.between(first, last))
        hashed.update(tools_text.lengths[row : row + 1].data)
        hashed.update(tools_text.between(row, row + 1))
        digests.append(hashed.digest())
    return digests


class _Text:
    """A text column: its bytes, and each value's length, -1 where it is null."""

    def __init__(self, column: pa.Array):
        text = column.cast(pa.large_string())
        _, offsets, data = text.buffers()
        self.offsets = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1].tolist()
        self.bytes = memoryview(data)[: self.offsets[-1]] if data is not None else memoryview(b"")
        self.lengths = np.diff(np.asarray(self.offsets)).astype(np.int64)
        self.lengths[text.is_null().to_numpy(zero_copy_only=False)] = ABSENT

    def between(self, first: int, last: int) -> memoryview:
        return self.bytes[self.offsets[first] : self.offsets[last]]


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def _as_integers(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as pairs of 64-bit integers, shape `(digests, 2)`."""
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
