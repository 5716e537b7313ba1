"""CSV and TSV rows, as text throughout: 007 stays 007. Quoted fields may hold line breaks and delimiters.

A row with too many or too few fields is refused by its line. A quote that is never closed swallows everything behind
it, so nobody knows how many rows are missing: that refuses the file.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any

from llm_assets.data.reading.batches import Batch, Damage, batched
from llm_assets.data.reading.text_files import decoded_text
from llm_assets.data.source_files import SourceFile
from llm_assets.data.sources import SourceConfig, SourceUnreadable

DELIMITERS = ",;\t|"


def csv_batches(file: SourceFile, source: SourceConfig) -> Iterator[Batch]:
    """Yield the rows of a CSV file; an empty field is an empty text, a missing one damage.

    Raises:
        SourceUnreadable: the header repeats a name, a quote is never closed, or a byte is not of the encoding.
    """
    yield from batched(_records(file, source))


def _records(file: SourceFile, source: SourceConfig) -> Iterator[tuple[int, dict[str, Any] | Damage, int]]:
    csv.field_size_limit(max(csv.field_size_limit(), source.max_row_bytes))
    with decoded_text(file, source) as text:
        first = text.readline()
        if not first.strip():
            return
        delimiter = "\t" if ".tsv" in file.path.suffixes else _delimiter(first)
        reader = csv.reader(_continued(first, text), delimiter=delimiter, strict=True)
        header = _header(next(reader), file)
        before = reader.line_num
        while True:
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):
                    raise _unclosed(file, before + 1) from error
                yield before + 1, Damage("malformed", str(error), f"{file.name}:{before + 1}".encode()), 0
            else:
                if fields:
                    yield before + 1, *_row(header, fields, source)
            before = reader.line_num


def _row(header: list[str], fields: list[str], source: SourceConfig) -> tuple[dict[str, Any] | Damage, int]:
    size = sum(map(len, fields))
    if len(fields) != len(header):
        content = "\x1f".join(fields).encode()
        detail = f"{len(fields)} fields under {len(header)} columns: {','.join(fields)[:80]}"
        return Damage("wrong_field_count", detail, content), 0
    if size > source.max_row_bytes:
        head = "\x1f".join(fields)[:200].encode()
        return Damage("row_too_large", f"{size:,} characters, at most {source.max_row_bytes:,}", head), 0
    return dict(zip(header, fields, strict=True)), size


def _continued(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    found = Counter(c for c in header if c in DELIMITERS).most_common(1)
    return found[0][0] if found else ","


def _header(names: list[str], file: SourceFile) -> list[str]:
    names = [name.strip() for name in names]
    if repeated := [name for name, times in Counter(names).items() if times > 1]:
        raise SourceUnreadable(f"{file.path}: the header names '{repeated[0]}' more than once. Rename one column.")
    return names


def _unclosed(file: SourceFile, line: int) -> SourceUnreadable:
    return SourceUnreadable(
        f"{file.path}, line {line}: a quote that opens here is never closed, so what follows cannot be told apart. "
        'Close it, and write a quote within a field as "".'
    )
