"""When two conversations say the same: equal after normalisation, sharing word n-grams, or close by MinHash."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PERMUTATIONS = 128
SHINGLE_WORDS = 3


def normalised(text: str) -> str:
    """Text without the differences that make no other row: Unicode compatibility forms, case, runs of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a conversation says, role by role, normalised."""
    return "\n".join(
        f"{turn['role']}: {normalised(turn['content'] + (turn.get('tool_calls') or ''))}" for turn in messages
    )


def key_of(text: str) -> str:
    """Sixteen bytes of SHA-256 as hex: equal texts, equal keys."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def ngrams(text: str, words: int) -> set[int]:
    """Hashes of all runs of `words` words; a shorter text is one run."""
    listed = text.split()
    runs = [" ".join(listed[i : i + words]) for i in range(max(1, len(listed) - words + 1))]
    return {int.from_bytes(hashlib.blake2b(run.encode(), digest_size=8).digest()) for run in runs}


class NearDuplicates:
    """An index of texts that answers which one a new text nearly repeats, by MinHash locality-sensitive hashing.

    Jaccard similarity of 3-word shingles, 128 permutations (standard error about 0.04 at 0.8). Memory grows by about
    3 kB a text; time is about 0.3 ms a text.
    """

    def __init__(self, similarity: float):
        from datasketch import MinHashLSH

        self.similarity = similarity
        lenient = max(0.1, min(similarity, 0.9) - 0.1)  # finds too many rather than too few; `like` compares sketches
        self._index = MinHashLSH(threshold=lenient, num_perm=PERMUTATIONS)
        self._sketches: dict[str, Any] = {}

    def add(self, name: str, text: str) -> None:
        """Put a text into the index under a unique name."""
        self._sketches[name] = _sketch(text)
        self._index.insert(name, self._sketches[name])

    def like(self, text: str) -> Iterator[str]:
        """Names of indexed texts at least `similarity` alike, in the order of their names."""
        return self._like(_sketch(text))

    def add_unless_like(self, name: str, text: str) -> str | None:
        """Index a text if nothing in the index is like it; else return the name of what is."""
        sketch = _sketch(text)
        for known in self._like(sketch):
            return known
        self._sketches[name] = sketch
        self._index.insert(name, sketch)
        return None

    def _like(self, sketch: Any) -> Iterator[str]:
        for name in sorted(map(str, self._index.query(sketch))):
            if sketch.jaccard(self._sketches[name]) >= self.similarity:
                yield name


def _sketch(text: str) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
    words = text.split()
    runs: Iterable[str] = {
        " ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
    }
    sketch.update_batch([run.encode() for run in sorted(runs)])
    return sketch
