"""Training rows that quote what a model is measured on: benchmark files named in the YAML, and held-out rows.

Texts are compared by runs of words, lower-cased and without punctuation, 13 by default as for GPT-3 (Brown et al.
2020, appendix C). A run in common with a benchmark drops the row, unless it is a set phrase: as there, one that more
than ten training rows have, counting rows that ask the same as one. A text shorter than a run is one run; texts below
`min_words` are not compared, since 'yes' is no leak. The cost is 8 bytes of memory per word of what is protected.
"""

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.similarity import normalised
from llm_assets.data.word_runs import word_runs

NOT_WORD = re.compile(r"[\W_]+")
SCREEN_BITS_PER_RUN = 16  # one look-up in sixteen goes on in vain


class BenchmarkUnreadable(LLMAssetsError):
    """A benchmark file is missing, empty or malformed."""


class ContaminationConfig(Config):
    """What training rows must not quote."""

    benchmarks: tuple[str, ...] = Field(
        default=(),
        description="Files or globs (Parquet, JSON, JSONL, CSV, text by lines); every text in them is protected.",
    )
    held_out: bool = Field(
        default=False, description="Protect this lineage's validation and test rows as well, beyond equal prompts."
    )
    ngram_words: int = Field(default=13, ge=3, description="Words per run.")
    min_words: int = Field(default=8, ge=1, description="Shorter texts are not compared.")
    set_phrase_rows: int = Field(
        default=10,
        ge=1,
        description="Runs that training rows with more than this many different prompts have are set phrases: no leak.",
    )
    min_runs: int = Field(default=1, ge=1, description="Drop a row from this many runs in common.")
    min_share: float = Field(
        default=0.0, ge=0, le=1, description="And only if these are at least this share of the row's runs."
    )

    @field_validator("benchmarks")
    @classmethod
    def _readable(cls, benchmarks: tuple[str, ...]) -> tuple[str, ...]:
        for path in benchmarks:
            suffixes = Path(path).suffixes
            if not suffixes or suffixes[-1] not in READERS:
                raise ValueError(f"benchmark {path!r} has no known suffix; give a file ending in {', '.join(READERS)}")
        return benchmarks

    @model_validator(mode="after")
    def _protects_something(self) -> Self:
        if not self.benchmarks and not self.held_out:
            raise ValueError("contamination protects nothing; list benchmarks, set held_out: true, or leave it out")
        return self

    def files(self) -> list[Path]:
        """Benchmark files, in the order of the YAML.

        Raises:
            BenchmarkUnreadable: an entry names no file.
        """
        found = []
        for pattern in self.benchmarks:
            paths = sorted(glob.glob(pattern, recursive=True))
            if not paths:
                raise BenchmarkUnreadable(f"Benchmark '{pattern}' names no file. Correct the path or remove the entry.")
            found += [Path(path) for path in paths]
        return found

    def digest(self) -> list[str]:
        """SHA-256 of each benchmark file that is there, so that another content marks the dataset stale."""
        paths = [path for pattern in self.benchmarks for path in sorted(glob.glob(pattern, recursive=True))]
        return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


class ProtectedRuns:
    """The runs of protected texts, and which source each belongs to."""

    def __init__(self, config: ContaminationConfig):
        self.config, self.names = config, list[str]()
        self._runs: list[np.ndarray] = []  # of each source: its distinct runs, ascending
        self._starts = np.zeros(1, np.int64)  # number of each source's first run; runs are numbered through
        self._rows_with = np.empty(0, np.int32)
        self._screen = _Screen([])

    def protect(self, name: str, texts: Iterable[str]) -> int:
        """Add the texts of one source; returns how many runs they had. Call `seal` after the last."""
        self.names.append(name)
        left = iter(texts)
        with TemporaryFile() as spill:  # twice in memory is too much for the runs of a hundred thousand held-out rows
            while some := list(islice(left, 4096)):
                spill.write(np.unique(word_runs(self._long(some), self.config.ngram_words)[0]).tobytes())
            spill.seek(0)
            runs = np.fromfile(spill, np.uint64)
        runs.sort()
        self._runs.append(_distinct(runs))
        return len(self._runs[-1])

    def seal(self) -> "ProtectedRuns":
        """Get ready for look-up; a run of several sources counts for the first."""
        self._starts = np.cumsum([0, *map(len, self._runs)])
        self._rows_with, self._screen = np.zeros(self._starts[-1], np.int32), _Screen(self._runs)
        return self

    def count(self, conversations: Sequence[Sequence[str]], asks_first: Sequence[bool]) -> list[int]:
        """Learn set phrases: count the rows, given as their texts, that have each run.

        Args:
            conversations: Texts of each row.
            asks_first: Whether a row is the first to ask what it asks; the others are not counted.

        Returns:
            Places of the rows that have any run at all: only these need judging.
        """
        rows, runs, _ = self._quoted(conversations)
        pairs = np.unique(np.stack([rows, runs]), axis=1)
        counted = np.asarray(asks_first, bool)[pairs[0]]
        np.add.at(self._rows_with, pairs[1][counted], 1)
        return np.unique(rows).tolist()

    def judge(self, conversations: Sequence[Sequence[str]]) -> list[tuple[str, str] | None]:
        """For each conversation, given as its texts: None, or whom it quotes and a sentence that says how much."""
        rows, runs, totals = self._quoted(conversations)
        telling = self._rows_with[runs] <= self.config.set_phrase_rows
        rows, runs = rows[telling], runs[telling]
        verdicts: list[tuple[str, str] | None] = [None] * len(conversations)
        for row in np.unique(rows).tolist():
            quoted = np.searchsorted(self._starts, runs[rows == row], side="right") - 1
            total = int(totals[row])
            if len(quoted) >= self.config.min_runs and len(quoted) >= self.config.min_share * total:
                name = self.names[int(np.bincount(quoted).argmax())]
                detail = f"{len(quoted)} of {total} runs of {self.config.ngram_words} words are in {name}"
                verdicts[row] = (name, detail)
        return verdicts

    def _quoted(self, conversations: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each protected run found: its conversation and its number; and how many runs each conversation has."""
        texts = [self._long(turns) for turns in conversations]
        runs, offsets = word_runs([text for turns in texts for text in turns], self.config.ngram_words)
        stops = offsets[np.cumsum([0, *map(len, texts)])]
        places = self._screen.may_hold(runs)
        numbers = self._numbers(runs[places])
        known = numbers >= 0
        return np.searchsorted(stops, places[known], side="right") - 1, numbers[known], np.diff(stops)

    def _numbers(self, hashes: np.ndarray) -> np.ndarray:
        """Number of each run, or -1."""
        numbers = np.full(len(hashes), -1, np.int64)
        for runs, start in zip(self._runs, self._starts.tolist(), strict=False):
            if len(runs):
                at = np.minimum(np.searchsorted(runs, hashes), len(runs) - 1)
                found = (runs[at] == hashes) & (numbers < 0)
                numbers[found] = start + at[found]
        return numbers

    def _long(self, texts: Iterable[str]) -> list[str]:
        cleaned = (NOT_WORD.sub(" ", normalised(text)).strip() for text in texts)
        return [text for text in cleaned if text.count(" ") + 1 >= self.config.min_words]


class _Screen:
    """Which leading bits occur among hashes, one bit each: most look-ups end here, in the processor's cache."""

    def __init__(self, sources: Sequence[np.ndarray]):
        leading = max(22, (SCREEN_BITS_PER_RUN * sum(map(len, sources))).bit_length())
        self._shift = np.uint64(64 - min(leading, 31))
        self._bits = np.zeros(1 << (min(leading, 31) - 3), np.uint8)
        for hashes in sources:
            for start in range(0, len(hashes), 1 << 20):
                keys = hashes[start : start + (1 << 20)] >> self._shift
                np.bitwise_or.at(self._bits, keys >> np.uint64(3), _bit(keys))

    def may_hold(self, hashes: np.ndarray) -> np.ndarray:
        """Places of the hashes that may be among those of the screen."""
        keys = hashes >> self._shift
        return np.flatnonzero(self._bits[keys >> np.uint64(3)] & _bit(keys))


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """Ascending hashes without repeats, in the same memory."""
    kept, last = 0, None
    for start in range(0, len(hashes), 1 << 20):
        block = hashes[start : start + (1 << 20)]
        fresh = np.ones(len(block), bool)
        fresh[1:] = block[1:] != block[:-1]
        fresh[0] = last is None or block[0] != last
        last, block = block[-1], block[fresh]
        hashes[kept : kept + len(block)] = block
        kept += len(block)
    hashes.resize(kept, refcheck=False)
    return hashes


def _bit(keys: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (keys & np.uint64(7)).astype(np.uint8))


def benchmark_runs(config: ContaminationConfig) -> ProtectedRuns:
    """Read the benchmark files.

    Raises:
        BenchmarkUnreadable: a file is missing, malformed, or holds no text long enough to be found.
    """
    protected = ProtectedRuns(config)
    for path in config.files():
        if not protected.protect(path.name, _texts_of_file(path)):
            raise BenchmarkUnreadable(
                f"Benchmark {path} holds no text of at least {config.min_words} words. Lower contamination.min_words, "
                "or remove the entry."
            )
    return protected.seal()


def _texts_of_file(path: Path) -> Iterator[str]:
    try:
        for value in READERS[path.suffix](path):
            yield from _texts(value)
    except (ValueError, OSError) as error:  # what json, pyarrow and UTF-8 decoding raise on a malformed file
        raise BenchmarkUnreadable(f"Benchmark {path} cannot be read: {error}. Repair the file.") from error


def _texts(value: Any) -> Iterator[str]:
    """Every text at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _parquet_rows(path: Path) -> Iterator[Any]:
    for batch in pq.ParquetFile(path).iter_batches(1024):
        yield batch.to_pylist()


READERS = {
    ".parquet": _parquet_rows,
    ".json": lambda path: [json.loads(path.read_text(encoding="utf-8"))],
    ".jsonl": lambda path: (json.loads(line) for line in _lines(path) if line.strip()),
    ".csv": lambda path: [pc.read_csv(path).to_pylist()],
    ".txt": _lines,
}
