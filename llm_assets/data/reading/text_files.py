"""Bytes of a text file, decompressed and decoded; what is wrong with the file as a whole is refused by its remedy."""

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from llm_assets.data.reading.batches import Damage
from llm_assets.data.source_files import SourceFile
from llm_assets.data.sources import SourceConfig, SourceUnreadable

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
BUFFER_BYTES = 2**20


@contextmanager
def plain_bytes(file: SourceFile, source: SourceConfig) -> Iterator[io.BufferedReader]:
    """Yield the file's bytes after decompression, behind a byte order mark of UTF-8.

    Raises:
        SourceUnreadable: the compressed stream is damaged or ends early; the bytes are those of another encoding.
    """
    try:
        with file.open() as stored:
            plain: Any = io.BufferedReader(_decompressed(stored, file.compression), BUFFER_BYTES)
            _refuse_other_encoding(plain.peek(4096)[:4096], file, source)
            if plain.peek(3)[:3] == UTF8_MARK:
                plain.read(3)
            yield plain
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        raise SourceUnreadable(
            f"{file.path} is damaged or ends early: {error}. Fetch or write the file again; nothing was ingested."
        ) from error


def lines(
    file: SourceFile, source: SourceConfig, max_bytes: int | None = None
) -> Iterator[tuple[int, str | Damage, int]]:
    """Yield `(line number, text or damage, bytes)` of every line, split at line feeds alone.

    A line that is not of the encoding, or longer than `max_bytes`, is damage; its rest is skipped, never held.
    """
    with plain_bytes(file, source) as plain:
        if source.encoding.replace("_", "-").lower().startswith("utf-16"):  # a line feed is two bytes there
            decoded = io.TextIOWrapper(plain, source.encoding, newline="\n")
            try:
                yield from ((number, text, 2 * len(text)) for number, text in enumerate(decoded, start=1))
            except UnicodeError as error:
                raise _undecodable(file, source, error) from error
            return
        yield from _byte_lines(plain, source, max_bytes or source.max_row_bytes)


def _byte_lines(plain: IO[bytes], source: SourceConfig, max_bytes: int) -> Iterator[tuple[int, str | Damage, int]]:
    number = 0
    while line := plain.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            size = len(line)
            head = line[:200]
            while not line.endswith(b"\n") and (line := plain.readline(BUFFER_BYTES)):
                size += len(line)
            yield number, Damage("row_too_large", f"{size:,} bytes, at most {max_bytes:,}", head), 0
            continue
        try:
            yield number, line.decode(source.encoding), len(line)
        except UnicodeDecodeError as error:
            yield number, Damage("bad_encoding", _not_decoded(line, error, source), line), len(line)


@contextmanager
def decoded_text(file: SourceFile, source: SourceConfig) -> Iterator[IO[str]]:
    """Yield the file as text with its line ends kept, for readers whose records span lines.

    Raises:
        SourceUnreadable: some bytes are not of the encoding.
    """
    with plain_bytes(file, source) as plain:
        try:
            yield io.TextIOWrapper(plain, source.encoding, newline="")
        except UnicodeError as error:
            raise _undecodable(file, source, error) from error


def _decompressed(stored: IO[bytes], compression: str | None) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stored)
    if compression == "bz2":
        return bz2.BZ2File(stored)
    return pa.CompressedInputStream(pa.PythonFile(stored), "zstd") if compression == "zstd" else stored


def _refuse_other_encoding(head: bytes, file: SourceFile, source: SourceConfig) -> None:
    wide = source.encoding.lower().startswith(("utf-16", "utf_16", "utf-32"))
    if not wide and (head[:2] in UTF16_MARKS or b"\0" in head):
        raise SourceUnreadable(
            f"{file.path} is read as {source.encoding}, but begins like UTF-16 ({head[:4].hex(' ')}). "
            "Set the source's encoding to utf-16 (utf-16-le without a byte order mark), or save the file as UTF-8."
        )


def _undecodable(file: SourceFile, source: SourceConfig, error: UnicodeError) -> SourceUnreadable:
    return SourceUnreadable(
        f"{file.path} is not {source.encoding}: {error}. Set the source's encoding (latin-1 and cp1252 are common), "
        "or save the file as UTF-8."
    )


def _not_decoded(line: bytes, error: UnicodeDecodeError, source: SourceConfig) -> str:
    around = line[max(0, error.start - 20) : error.start + 20]
    return f"byte {line[error.start]:#04x} is not {source.encoding}, near {around!r}; is the encoding latin-1?"
