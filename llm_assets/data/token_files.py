"""Tokenized rows on disk: one Arrow file per split, read through a memory map, so that opening it copies nothing.

    row_id  input_ids           spans   prompt_tokens  supervised_tokens  ...
    "a1"    [1, 40, 7, 3, 9, 2] [3, 6]  3              3                      labels: -100 -100 -100 3 9 2

Token ids are uint16 where the vocabulary fits, else int32. Labels are not stored: they are the ids inside the spans,
eight bytes for most rows instead of four per token. The cost is no compression: two bytes a token on disk.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from llm_assets.core import LLMAssetsError

IGNORED = -100
LABELS = "labels"
UINT16_TOKENS = 2**16
DIGEST_BYTES = 16
COLUMNS = {
    "row_id": "The conversation this row was rendered from.",
    "input_ids": "Token ids of the whole conversation.",
    "spans": "First and after-last token of each stretch that carries loss, one after the other.",
    "prompt_tokens": "Tokens before the last answer.",
    "supervised_tokens": "Tokens that carry loss.",
    "cut_messages": "Messages left out at the start, after the system message, to fit the length limit.",
    "characters": "Length of the rendered text.",
    "source_digest": "Of the conversation, so that an unchanged one is not tokenized again.",
}

NUMBERS = ("prompt_tokens", "supervised_tokens", "cut_messages", "characters")


class TokensUnreadable(LLMAssetsError):
    """A tokenized dataset lacks a split's file."""


def token_schema(vocabulary_size: int = 2**31) -> pa.Schema:
    """Columns of a split, with the smallest integers that hold the ids of a vocabulary."""
    ids = pa.uint16() if vocabulary_size <= UINT16_TOKENS else pa.int32()
    types = {
        "row_id": pa.string(),
        "input_ids": pa.list_(pa.field("item", ids, nullable=False)),
        "spans": pa.list_(pa.field("item", pa.int32(), nullable=False)),
        "source_digest": pa.binary(DIGEST_BYTES),
    }
    return pa.schema([pa.field(name, types.get(name, pa.int32()), nullable=False) for name in COLUMNS])


@dataclass(frozen=True)
class TokenColumns:
    """Some rows as flat columns, without their names.

    Attributes:
        ids: Token ids of all rows, one after the other.
        lengths: Tokens of each row.
        spans: Spans of all rows.
        span_lengths: Numbers in each row's spans, two per turn.
        numbers: The other columns by name.
    """

    ids: np.ndarray
    lengths: np.ndarray
    spans: np.ndarray
    span_lengths: np.ndarray
    numbers: Mapping[str, np.ndarray]


def as_stored(
    schema: pa.Schema, row_ids: Sequence[str], digests: Sequence[bytes], pieces: Sequence[TokenColumns]
) -> pa.RecordBatch:
    """Rows in pieces as one batch of a split's file.

    Args:
        schema: From `token_schema`.
        row_ids: Of all rows, in order.
        digests: Of their conversations.
        pieces: Their columns, in the same order.
    """
    columns: dict[str, Any] = {
        "row_id": pa.array(row_ids, pa.string()),
        "input_ids": _lists([p.ids for p in pieces], [p.lengths for p in pieces], schema.field("input_ids").type),
        "spans": _lists([p.spans for p in pieces], [p.span_lengths for p in pieces], schema.field("spans").type),
        "source_digest": pa.array(digests, pa.binary(DIGEST_BYTES)),
        **{
            name: pa.array(np.concatenate([p.numbers[name] for p in pieces]).astype(np.int32, copy=False))
            for name in NUMBERS
        },
    }
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


class TokenWriter:
    """Writes a split's file batch by batch; a context manager."""

    def __init__(self, directory: Path, split: str, schema: pa.Schema):
        self.schema = schema
        self._file = pa.ipc.new_file(str(directory / f"{split}.arrow"), schema)

    def write(self, row_ids: Sequence[str], digests: Sequence[bytes], pieces: Sequence[TokenColumns]) -> None:
        """Append rows as one batch, see `as_stored`; no rows leave no trace."""
        if row_ids:
            self._file.write_batch(as_stored(self.schema, row_ids, digests, pieces))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class TokenFile:
    """One split, memory-mapped: a row is read from disk when it is asked for, and dropped by the kernel at will.

    Raises:
        TokensUnreadable: the file is missing.
    """

    def __init__(self, dataset: Path, split: str):
        path = dataset / f"{split}.arrow"
        if not path.exists():
            raise TokensUnreadable(f"{path} does not exist. Materialize tokenized_dataset again.")
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.schema = reader.schema
        self.batches: list[pa.RecordBatch] = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)]).tolist()
        self._views: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64, shape `(rows,)`."""
        return self.column_lengths("input_ids")

    def column_lengths(self, name: str) -> np.ndarray:
        """Values per row of a list column, int64."""
        counts = [batch[name].value_lengths().to_numpy() for batch in self.batches]
        return np.concatenate([np.zeros(0, np.int64), *counts]).astype(np.int64)

    def numbers(self, name: str) -> np.ndarray:
        """One integer column, int64, shape `(rows,)`."""
        return np.concatenate([np.zeros(0, np.int64), *(batch[name].to_numpy() for batch in self.batches)])

    def ids(self, row: int) -> np.ndarray:
        """Token ids of one row, a view into the file."""
        return self._values("input_ids", row)

    def spans(self, row: int) -> np.ndarray:
        """Spans of one row, int32, shape `(turns, 2)`, a view into the file."""
        return self._values("spans", row).reshape(-1, 2)

    def labels(self, row: int) -> np.ndarray:
        """Labels of one row, int64: its ids inside the spans, -100 elsewhere."""
        ids = self.ids(row).astype(np.int64)
        labels = np.full(len(ids), IGNORED, np.int64)
        for first, last in self.spans(row):
            labels[first:last] = ids[first:last]
        return labels

    def _values(self, name: str, row: int) -> np.ndarray:
        batch = bisect_right(self._starts, row) - 1
        offsets, values = self._flat(name)[batch]
        place = row - self._starts[batch]
        return values[offsets[place] : offsets[place + 1]]

    def _flat(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Offsets and values of a list column in each batch, views into the file; a row costs a slice from then on."""
        if name not in self._views:
            columns = [batch[name] for batch in self.batches]
            self._views[name] = [(column.offsets.to_numpy(), column.values.to_numpy()) for column in columns]
        return self._views[name]


def read_tokens(dataset: Path, split: str, columns: Sequence[str], rows: Sequence[int] | None = None) -> pa.Table:
    """Rows of a split as a table in memory, for a handful of rows or a small split.

    Args:
        dataset: A tokenized dataset.
        split: train, validation or test.
        columns: Of `COLUMNS`, and `labels` (list of int32, -100 where there is no loss).
        rows: Which rows, in this order; all of them when not given.

    Raises:
        TokensUnreadable: the file is missing.
    """
    file = TokenFile(dataset, split)
    stored = [name for name in columns if name != LABELS]
    table = pa.Table.from_batches(file.batches, file.schema)
    table = table.select(stored) if rows is None else table.select(stored).take(pa.array(rows, pa.int64()))
    if LABELS in columns:
        chosen = range(len(file)) if rows is None else rows
        labels = pa.array([file.labels(row).astype(np.int32) for row in chosen], pa.list_(pa.int32()))
        table = table.append_column(LABELS, labels)
    return table.select(list(columns))


def write_rows(dataset: Path, split: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows given as mappings of `row_id`, `input_ids`, `labels` and `prompt_tokens`, as one batch.

    For datasets made otherwise than by `tokenize_dataset`: stretches of labels other than -100 become the spans.
    """
    listed = list(rows)
    ids = [np.asarray(row["input_ids"]) for row in listed]
    spans = [_stretches(np.asarray(row["labels"])) for row in listed]
    zeros = np.zeros(len(listed), np.int32)
    columns = TokenColumns(
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        lengths=np.array([len(row) for row in ids]),
        spans=np.concatenate([np.zeros(0, np.int32), *spans]),
        span_lengths=np.array([len(row) for row in spans]),
        numbers={
            "prompt_tokens": np.array([row["prompt_tokens"] for row in listed], np.int32),
            "supervised_tokens": np.array([int((span[1::2] - span[::2]).sum()) for span in spans], np.int32),
            "cut_messages": zeros,
            "characters": zeros,
        },
    )
    with TokenWriter(dataset, split, token_schema()) as writer:
        writer.write([str(row["row_id"]) for row in listed], [bytes(DIGEST_BYTES)] * len(listed), [columns])


def _stretches(labels: np.ndarray) -> np.ndarray:
    """First and after-last place of each run of labels other than -100, one after the other."""
    on = np.concatenate([[False], labels != IGNORED, [False]])
    return np.flatnonzero(on[1:] != on[:-1]).astype(np.int32)


def _lists(values: Sequence[np.ndarray], lengths: Sequence[np.ndarray], type_: pa.DataType) -> pa.ListArray:
    flat = np.concatenate(values).astype(type_.value_type.to_pandas_dtype(), copy=False)
    offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=type_)
