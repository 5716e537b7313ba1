"""JSON rows: one object per line, an array of objects, or objects one after another, whatever the suffix says.

Lines stand alone, so a malformed one is refused and the next is read. In an array there is no telling where the next
row begins once one is malformed, or whether rows are missing when it ends early: that refuses the file. Only one row
of a file is held at a time.
"""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from llm_assets.data.reading.batches import Batch, Damage, batched
from llm_assets.data.reading.text_files import decoded_text, lines
from llm_assets.data.source_files import SourceFile
from llm_assets.data.sources import SourceConfig, SourceUnreadable

CHUNK_CHARACTERS = 2**20
BLANK = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder(parse_constant=lambda _name: None)  # NaN and Infinity are no JSON: no value


def json_batches(file: SourceFile, source: SourceConfig) -> Iterator[Batch]:
    """Yield the rows of a JSON file.

    Raises:
        SourceUnreadable: an array is malformed or ends early, or the file holds neither objects nor an array.
    """
    yield from batched(_line_records(file, source) if _is_lines(file, source) else _stream_records(file, source))


def _is_lines(file: SourceFile, source: SourceConfig) -> bool:
    """Whether each line is a row, told by the first line that is not blank: a whole value, and no array of rows."""
    for _, line, _ in lines(file, source):
        if isinstance(line, Damage):
            return not line.content.lstrip().startswith(b"[")
        if text := line.strip():
            if text[0] == "[":
                return False
            return text[0] != "{" or not isinstance(_row(text), Damage) or ".json" not in file.path.suffixes
    return True


def _line_records(file: SourceFile, source: SourceConfig) -> Iterator[tuple[int, dict[str, Any] | Damage, int]]:
    for number, line, size in lines(file, source):
        if isinstance(line, Damage):
            yield number, line, size
        elif text := line.strip():
            yield number, _row(text), size


def _row(text: str) -> dict[str, Any] | Damage:
    try:
        value = _decode.decode(text)
    except (ValueError, RecursionError) as error:
        return Damage("malformed", f"{error}: {text[:80]}", text.encode(errors="replace"))
    if isinstance(value, dict):
        return value
    return Damage("not_an_object", f"a JSON {type(value).__name__}: {text[:80]}", text.encode(errors="replace"))


def _stream_records(file: SourceFile, source: SourceConfig) -> Iterator[tuple[int, dict[str, Any] | Damage, int]]:
    """Elements of an array, or objects one after another, each decoded as soon as it is whole."""
    with decoded_text(file, source) as text:
        window = _Window(text, file, limit=max(4 * source.max_row_bytes, 2**26))
        array = window.skip("[")
        while True:
            if array and window.skip("]"):
                window.refuse_rest()
                return
            if window.at_end():
                if array:
                    window.refuse("the array ends early; its closing ] is missing, and rows with it")
                return
            line = window.line
            value, size = window.value()
            if array and not window.skip(",") and not window.ahead("]"):
                window.refuse("a comma or the closing ] is missing")
            if isinstance(value, dict) and size <= source.max_row_bytes:
                yield line, value, size
            else:
                yield line, _refused_element(value, size, source), 0


def _refused_element(value: Any, size: int, source: SourceConfig) -> Damage:
    head = json.dumps(value)[:200].encode()
    if isinstance(value, dict):
        return Damage("row_too_large", f"{size:,} characters, at most {source.max_row_bytes:,}", head)
    return Damage("not_an_object", f"a JSON {type(value).__name__}: {head[:80].decode()}", head)


class _Window:
    """The part of a text that is being decoded, with the line it begins at."""

    def __init__(self, text: IO[str], file: SourceFile, limit: int) -> None:
        self._text, self._file, self._limit = text, file, limit
        self._held, self._at, self.line = "", 0, 1

    def skip(self, mark: str) -> bool:
        """Step over blanks and, if it comes next, the mark; whether it did."""
        if not self.ahead(mark):
            return False
        self._at += 1
        return True

    def ahead(self, mark: str) -> bool:
        """Whether the mark comes next after blanks."""
        return not self.at_end() and self._held.startswith(mark, self._at)

    def at_end(self) -> bool:
        """Step over blanks; whether nothing follows them."""
        while True:
            found = BLANK.match(self._held, self._at)
            self._step(found.end() if found else self._at)
            if self._at < len(self._held):
                return False
            if not self._more():
                return True

    def value(self) -> tuple[Any, int]:
        """The next JSON value and its length in characters."""
        while True:
            try:
                value, end = _decode.raw_decode(self._held, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    self.refuse(f"{error}: {self._held[self._at : self._at + 80]}")
                continue
            if end == len(self._held) and self._more():  # a number may go on
                continue
            size = end - self._at
            self._step(end)
            return value, size

    def refuse(self, problem: str) -> None:
        """Raise `SourceUnreadable` for the place the window begins at."""
        raise SourceUnreadable(
            f"{self._file.path}, line {self.line}: not JSON from here on: {problem}. Repair the file, or write one "
            "object per line: then a bad one costs only itself."
        )

    def refuse_rest(self) -> None:
        """Raise `SourceUnreadable` unless only blanks follow."""
        if not self.at_end():
            self.refuse(f"something follows the array: {self._held[self._at : self._at + 80]}")

    def _step(self, end: int) -> None:
        self.line += self._held.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read on; a value larger than the limit is taken for damage."""
        waiting = len(self._held) - self._at
        more = self._text.read(max(CHUNK_CHARACTERS, waiting)) if waiting <= self._limit else ""
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)
