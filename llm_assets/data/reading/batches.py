"""What every reader yields: columns as text with the kind each value had, and the rows it refused with their place.

Text is what all kinds of source have in common: a file whose numbers are text and one whose text is numbers fit under
one another, and a row's hash is the same whatever it was read from. The kinds say what a column becomes in the end.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, NamedTuple

import pyarrow as pa

BATCH_ROWS = 2048
BATCH_BYTES = 16 * 2**20
ID_CHARACTERS = 16  # 64 bits of SHA-256: one accidental collision expected beyond four billion rows
TEXT, WHOLE, DECIMAL, TRUTH, NESTED = "text", "whole", "decimal", "truth", "nested"
LARGEST_WHOLE = 2**63

_nested_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


class RefusedRow(NamedTuple):
    """A row that was read and left out, and where it stands; `row_id` is the hash of what was read."""

    row_id: str
    source: str
    file: str
    line: int
    reason: str
    detail: str


class Damage(NamedTuple):
    """Why one record is refused, and what could be read of it."""

    reason: str
    detail: str
    content: bytes


@dataclass(frozen=True)
class Batch:
    """Rows of one file.

    Attributes:
        lines: Line in its file at which each row begins, from 1; the row's number where there are no lines.
        columns: Values as text, null where there is none; every array as long as `lines`.
        kinds: What the values of a column were: text, whole, decimal, truth, or nested, which became JSON text.
        refused: `(line, damage)` of the rows left out.
    """

    lines: Sequence[int]
    columns: Mapping[str, pa.Array]
    kinds: Mapping[str, frozenset[str]]
    refused: Sequence[tuple[int, Damage]] = ()


def short_id(content: bytes) -> str:
    """Row id of what could be read of a refused row."""
    return sha256(content).hexdigest()[:ID_CHARACTERS]


def batched(records: Iterable[tuple[int, dict[str, Any] | Damage, int]]) -> Iterator[Batch]:
    """Group `(line, row or damage, bytes)` into batches bounded in rows and in bytes."""
    rows: list[tuple[int, dict[str, Any]]] = []
    refused: list[tuple[int, Damage]] = []
    held = 0
    for line, record, size in records:
        if isinstance(record, Damage):
            refused.append((line, record))
        else:
            rows.append((line, record))
        held += size
        if len(rows) + len(refused) >= BATCH_ROWS or held >= BATCH_BYTES:
            yield _batch(rows, refused)
            rows, refused, held = [], [], 0
    if rows or refused:
        yield _batch(rows, refused)


def _batch(rows: list[tuple[int, dict[str, Any]]], refused: list[tuple[int, Damage]]) -> Batch:
    try:
        columns, kinds = _columns([row for _, row in rows])
    except UnicodeEncodeError:  # half of a surrogate pair, written as an escape: text no encoding can hold
        checked = [(line, row, _unencodable(row)) for line, row in rows]
        refused = [*refused, *((line, damage) for line, _, damage in checked if damage)]
        rows = [(line, row) for line, row, damage in checked if not damage]
        columns, kinds = _columns([row for _, row in rows])
    return Batch([line for line, _ in rows], columns, kinds, refused)


def _columns(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, pa.Array], dict[str, frozenset[str]]]:
    columns, kinds = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        columns[name], kinds[name] = as_text(values)
    return columns, kinds


def as_text(values: list[Any]) -> tuple[pa.Array, frozenset[str]]:
    """Values of one column as text, and the kinds they had."""
    types = set(map(type, values)) - {type(None)}
    if types <= {str}:
        return pa.array(values, pa.string()), frozenset((TEXT,) if types else ())
    if types <= {list, dict}:
        return pa.array([None if v is None else _nested_text(v) for v in values], pa.string()), frozenset((NESTED,))
    found = [_cell(value) for value in values]
    return pa.array([text for text, _ in found], pa.string()), frozenset(kind for _, kind in found if kind)


def _cell(value: Any) -> tuple[str | None, str | None]:
    """A value's text and kind; NaN and infinity, which no JSON has, count as no value."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None, None
    if isinstance(value, str):
        return value, TEXT
    if isinstance(value, bool):
        return ("true" if value else "false"), TRUTH
    if isinstance(value, int):
        return str(value), (WHOLE if -LARGEST_WHOLE <= value < LARGEST_WHOLE else TEXT)
    if isinstance(value, float):
        return repr(value), DECIMAL
    return _nested_text(value), NESTED if isinstance(value, (list, dict)) else TEXT


def _unencodable(row: Mapping[str, Any]) -> Damage | None:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return Damage("bad_encoding", f"half a surrogate pair: {text[error.start]!a}", text.encode(errors="replace"))
    return None
