"""Lists and objects in a source row: they travel as JSON text, in columns that say so.

Text that looks like JSON and a list that became JSON are not the same: the first may be an answer, the second is none
until somebody says how it reads.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

NESTED_MARK = {b"nested": b"as JSON text"}


def nested_columns(schema: pa.Schema) -> list[str]:
    """Columns in which at least one value was a list or an object."""
    return [field.name for field in schema if field.metadata and b"nested" in field.metadata]


def opened(row: Mapping[str, Any], nested: Collection[str]) -> Mapping[str, Any]:
    """The row with the lists and objects of its nested columns as such."""
    found = {name: _value(row[name]) for name in nested if isinstance(row.get(name), str)}
    return {**row, **found} if found else row


def _value(text: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # text in a column whose other rows hold lists
        return text
