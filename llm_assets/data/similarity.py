"""When two conversations say the same: their words without case, Unicode look-alikes and runs of white space.

Equal means equal after that normalisation, told by 64-bit keys: among a hundred million rows, one accidental pair in
three thousand runs. Punctuation and word order make another row.
"""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """What a conversation says, for comparing it with others.

    Attributes:
        prompt_key: Equal where everything before the last message is equal.
        content_key: Equal where all messages are equal.
        text: All turns but the system's, normalised, one per line; a shared system message makes nobody alike.
    """

    prompt_key: int
    content_key: int
    text: str


def said(messages: Sequence[Mapping[str, Any]]) -> Said:
    """Normalise a conversation once, for every comparison.

    Raises:
        UnicodeEncodeError: a message holds half a surrogate pair, which no file can store.
    """
    lines = [f"{turn['role']}: {normalised(turn['content'] + (turn.get('tool_calls') or ''))}" for turn in messages]
    digest = hashlib.blake2b("\n".join(lines[:-1]).encode(), digest_size=8)
    prompt_key = int.from_bytes(digest.digest())
    digest.update(b"\n" + lines[-1].encode())
    for number, turn in enumerate(messages):
        if turn.get("train") is False:  # the same words to learn from are another row than as context
            digest.update(b"context %d" % number)
    spoken = [line for line, turn in zip(lines, messages, strict=True) if turn["role"] != "system"]
    return Said(prompt_key, int.from_bytes(digest.digest()), "\n".join(spoken))


def normalised(text: str) -> str:
    """Text without the differences that make no other row: Unicode compatibility forms, case, runs of white space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())
