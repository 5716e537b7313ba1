r"""Byte-level BPE four times faster on plain ASCII text: each word is looked up, and only new words are encoded.

    "how many orders?"  ->  "how" " many" " orders" "?"  ->  one dictionary look-up each

Byte-level tokenizers cut text into words by a regular expression and encode each word by itself, so the ids of a word
never depend on its neighbours. Python's regular expressions cut ASCII text as the tokenizer's do once its Unicode
classes are spelled out. Anything else (other alphabets, other tokenizers) goes through the tokenizer itself, and the
first rows of every dataset go through both: should they differ, the tokenizer is right and encodes everything, with a
warning and at its own speed. The cost is a dictionary of up to 100,000 words.
"""

import json
import logging
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST_WORD, MOST_WORDS = 64, 100_000
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel with use_regex
ASCII_OF = {"L": "a-zA-Z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9"}
_CLASS = re.compile(r"\\p\{(\w+)\}")
COMPARED_ROWS = 64
LOG = logging.getLogger(__name__)


class WordEncoder:
    """Encodes texts exactly as `encode_batch_fast(texts, add_special_tokens=False)` does.

    Args:
        tokenizer: Any fast tokenizer; those that are not byte-level BPE are passed through.
    """

    def __init__(self, tokenizer: "Tokenizer"):
        self._tokenizer = tokenizer
        self._added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items()}
        self._cut, words = _patterns(tokenizer, sorted(self._added, key=len, reverse=True))
        self._words: Callable[[str], list[str]] | None = words.findall if words else None
        self._ids = _Words(tokenizer, self._added)
        self._left_to_compare = COMPARED_ROWS

    @property
    def by_words(self) -> bool:
        """Whether this tokenizer's ASCII texts are encoded word by word."""
        return self._words is not None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        if self._words is None:
            return self._whole(texts)
        others = [n for n, text in enumerate(texts) if not text.isascii()]
        whole = dict(zip(others, self._whole([texts[n] for n in others]), strict=True))
        encoded = [whole[n] if n in whole else self._one(text) for n, text in enumerate(texts)]
        if self._left_to_compare > 0:
            different = self._different(texts[: self._left_to_compare], encoded)
            self._left_to_compare -= len(texts)
            if different is not None:
                LOG.warning(
                    "This tokenizer's words cannot be encoded one by one: %r differs. Texts are encoded whole instead, "
                    "which is slower and as exact.",
                    different[:80],
                )
                self._words = None
                return self._whole(texts)
        return encoded

    def encode(self, text: str) -> list[int]:
        """Token ids of one text."""
        if self._words is None or not text.isascii():
            return self._tokenizer.encode(text, add_special_tokens=False).ids  # the template writes its own bos
        return self._one(text)

    def _one(self, text: str) -> list[int]:
        words, ids_of = self._words, self._ids.__getitem__
        ids: list[int] = []
        for place, piece in enumerate(self._cut.split(text)):
            if place % 2:
                ids.append(self._added[piece])
            elif piece and words:
                ids.extend(chain.from_iterable(map(ids_of, words(piece))))
        return ids

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _different(self, texts: Sequence[str], encoded: Sequence[list[int]]) -> str | None:
        """The first text whose ids are not those of the tokenizer."""
        compared = zip(texts, encoded, self._whole(texts), strict=False)
        return next((text for text, ours, theirs in compared if ours != theirs), None)


class _Words(dict[str, list[int]]):
    """Ids by word, filled as words are met."""

    def __init__(self, tokenizer: "Tokenizer", added: dict[str, int]):
        super().__init__()
        from tokenizers.pre_tokenizers import ByteLevel

        self._model, self._added = tokenizer.model, added
        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)

    def __missing__(self, word: str) -> list[int]:
        ((spelled, _),) = self._bytes.pre_tokenize_str(word)
        ids = [token.id for token in self._model.tokenize(spelled)]
        if len(word) <= LONGEST_WORD and len(self) < MOST_WORDS:
            self[word] = ids
        return ids


def _patterns(tokenizer: "Tokenizer", added: list[str]) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """What cuts out added tokens, and what cuts ASCII text into words; None where words cannot be told that way."""
    cut = re.compile("(" + ("|".join(map(re.escape, added)) or "(?!)") + ")")
    stored = json.loads(tokenizer.to_str())
    plain = not any(t["lstrip"] or t["rstrip"] or t["single_word"] or t["normalized"] for t in stored["added_tokens"])
    pattern = _word_pattern(stored)
    if pattern is None or not plain:
        return cut, None
    unknown = {name for name in _CLASS.findall(pattern) if name not in ASCII_OF}
    if unknown:
        return cut, None
    try:
        return cut, re.compile(_in_ascii(pattern), re.ASCII)
    except re.error:
        return cut, None


def _word_pattern(stored: dict[str, Any]) -> str | None:
    """The one regular expression a byte-level BPE tokenizer cuts words by."""
    model, normalizer = stored["model"], stored["normalizer"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("byte_fallback"):
        return None
    if normalizer is not None and normalizer["type"] not in ("NFC", "NFD", "NFKC", "NFKD"):  # those keep ASCII
        return None
    step = stored["pre_tokenizer"] or {}
    steps = step.get("pretokenizers", [step])
    *splits, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"] or len(splits) > 1:
        return None
    if not splits:
        return GPT2 if last["use_regex"] else None
    (split,) = splits
    sound = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    return split["pattern"].get("Regex") if sound and not last["use_regex"] else None


def _in_ascii(pattern: str) -> str:
    r"""Spell out `\p{…}` for ASCII text, inside character classes and outside."""
    pieces, place, depth = [], 0, 0
    for found in re.finditer(r"\\p\{\w+\}|\\.|\[\^?|\]", pattern):
        token = found[0]
        pieces.append(pattern[place : found.start()])
        place = found.end()
        if token.startswith("\\p"):
            characters = ASCII_OF[token[3:-1]]
            pieces.append(characters if depth else f"[{characters}]" if characters else "(?!)")
            continue
        depth += token.startswith("[") - (token == "]")
        pieces.append(token)
    return "".join([*pieces, pattern[place:]])
