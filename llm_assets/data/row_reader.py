"""Batches of raw rows read as conversations, in this process or in several: the result is the same, in order.

A batch is the unit of work: what comes back holds columns and numbers, no Python objects per row, so that handing it
over costs little. Several processes pay from some fifty thousand rows; each starts in two seconds and holds 150 MB.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, Self

import numpy as np
import pyarrow as pa

from llm_assets.data.chat_rows import CHAT, chat_batch
from llm_assets.data.curation import CurationConfig, Judge
from llm_assets.data.dropped import DroppedRow, excerpt_of, excerpt_of_raw, place_of
from llm_assets.data.filters import characters
from llm_assets.data.formats import FormatConfig
from llm_assets.data.messages import Conversation, RowRefused
from llm_assets.data.minhash import Sketches, sketch
from llm_assets.data.nested import nested_columns
from llm_assets.data.predicates import sql_predicate
from llm_assets.data.similarity import Said, said
from llm_assets.data.splits import SplitConfig, given_split, group_key

CANDIDATE = pa.schema([*CHAT, ("source", pa.string()), ("place", pa.string())])


@dataclass(frozen=True)
class Reading:
    """How raw rows are read.

    Attributes:
        formats: Formats of the sources with one of their own.
        format: Format of all others.
        curation: What is dropped.
        split: How rows are grouped.
    """

    formats: Mapping[str, FormatConfig]
    format: FormatConfig
    curation: CurationConfig
    split: SplitConfig


@dataclass(frozen=True)
class ReadRows:
    """What became of one batch of raw rows.

    Attributes:
        ingested: Raw rows of the batch.
        rows: Those that read as conversations: the chat dataset's columns, `source` and `place`.
        keys: Their 64-bit keys of content, prompt and group: uint64, shape `(rows, 3)`.
        given: The split each names itself, or -1: int8.
        characters: Their lengths: int32.
        sketches: Their sketches, where near-duplicates are looked for.
        dropped: The other rows.
        scrubbed: Personal data replaced, by kind.
    """

    ingested: int
    rows: pa.RecordBatch
    keys: np.ndarray
    given: np.ndarray
    characters: np.ndarray
    sketches: Sketches | None
    dropped: list[DroppedRow]
    scrubbed: Counter[str]


class RowReader:
    """Reads batches; open while its SQL predicate has a connection."""

    def __init__(self, reading: Reading):
        self._split, self._near = reading.split, reading.curation.near_duplicates
        self._judge = Judge(reading.formats, reading.format, reading.curation)
        self._open = ExitStack()
        where = reading.curation.where
        self._predicate = self._open.enter_context(sql_predicate(where)) if where else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, batch: pa.RecordBatch) -> ReadRows:
        """Read one batch of raw rows.

        Raises:
            PredicateInvalid, PredicateFailed: a predicate cannot judge; names the row.
            SplitUnknown: a row names a split that does not exist.
        """
        passes = self._predicate.keeps(batch) if self._predicate else [True] * batch.num_rows
        dropped, before = list[DroppedRow](), self._judge.scrubbed()
        taken = []
        nested = nested_columns(batch.schema)
        for row, passed in zip(batch.to_pylist(), passes, strict=True):
            read = self._read_row(row, passed, nested)
            if isinstance(read, DroppedRow):
                dropped.append(read)
            else:
                taken.append((row, *read))
        rows, conversations, extras, what = zip(*taken, strict=True) if taken else ((), (), (), ())
        keys = [
            (says.content_key, says.prompt_key, self._group(row, says)) for row, says in zip(rows, what, strict=True)
        ]
        given = [given_split(row, self._split) for row in rows]
        return ReadRows(
            ingested=batch.num_rows,
            rows=_candidates(rows, conversations, extras),
            keys=np.array(keys, np.uint64).reshape(-1, 3),
            given=np.array([-1 if split is None else split for split in given], np.int8),
            characters=np.array([characters(found.messages) for found in conversations], np.int32),
            sketches=sketch([says.text for says in what], self._near.similarity) if self._near else None,
            dropped=dropped,
            scrubbed=self._judge.scrubbed() - before,
        )

    def _read_row(
        self, row: Mapping[str, Any], passes: bool, nested: Sequence[str]
    ) -> tuple[Conversation, str, Said] | DroppedRow:
        found = None
        try:
            found, extras = self._judge.read(row, passes, nested)
            self._judge.judge(found, row)
            return found, extras, _said(found.messages)
        except RowRefused as refused:
            masked = self._judge.without_personal_data
            excerpt = excerpt_of(found.messages) if found else masked(excerpt_of_raw(row))
            return DroppedRow(
                row["row_id"], row["source"], place_of(row), refused.reason, masked(refused.detail), excerpt
            )

    def _group(self, row: Mapping[str, Any], says: Said) -> int:
        return group_key(row, says.prompt_key, self._split)


def read_in_order(raw: Iterable[pa.RecordBatch], reading: Reading, processes: int = 1) -> Iterator[ReadRows]:
    """Read batches of raw rows, up to two per process ahead of what is taken."""
    with ExitStack() as stack:
        begin = _reading_at_once(reading, stack) if processes == 1 else _reading_apart(reading, processes, stack)
        under_way: deque[Callable[[], ReadRows]] = deque()
        for batch in raw:
            under_way.append(begin(batch))
            if len(under_way) >= (1 if processes == 1 else 2 * processes):
                yield under_way.popleft()()
        while under_way:
            yield under_way.popleft()()


def _reading_at_once(reading: Reading, stack: ExitStack) -> Callable[[pa.RecordBatch], Callable[[], ReadRows]]:
    reader = stack.enter_context(RowReader(reading))
    return lambda batch: partial(reader.read, batch)


def _reading_apart(
    reading: Reading, processes: int, stack: ExitStack
) -> Callable[[pa.RecordBatch], Callable[[], ReadRows]]:
    pool = stack.enter_context(
        ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_open_reader, initargs=(reading,))
    )
    return lambda batch: pool.submit(_read_in_process, batch).result


_reader_of_process: list[RowReader] = []


def _open_reader(reading: Reading) -> None:
    _reader_of_process.append(RowReader(reading))


def _read_in_process(batch: pa.RecordBatch) -> ReadRows:
    return _reader_of_process[0].read(batch)


def _candidates(
    rows: Sequence[Mapping[str, Any]], conversations: Sequence[Conversation], extras: Sequence[str]
) -> pa.RecordBatch:
    ids = [row["row_id"] for row in rows]
    made = chat_batch(
        ids, [found.messages for found in conversations], [found.tools for found in conversations], extras
    )
    origins = ([row["source"] for row in rows], [place_of(row) for row in rows])
    columns = [*made.columns, *(pa.array(origin, pa.string()) for origin in origins)]
    return pa.RecordBatch.from_arrays(columns, schema=CANDIDATE)


def _said(messages: Sequence[Mapping[str, Any]]) -> Said:
    try:
        return said(messages)
    except UnicodeEncodeError as error:
        raise RowRefused("not_unicode", f"half a surrogate pair at character {error.start}") from None
