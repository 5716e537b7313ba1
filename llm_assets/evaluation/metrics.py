"""Text metrics of one answer against one expected text, each a value from 0 to 1.

They compare characters, never meaning: two equivalent SQL queries score 0 on `exact_match`. `sql_execution` is the
metric for meaning; these are what it is read beside.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping

_FENCED = re.compile(r"```[a-zA-Z]*\n(.*?)(?:```|\Z)", re.DOTALL)
_SPACE_AROUND_SYMBOLS = re.compile(r"\s*([^\w\s'\"])\s*")


def exact_match(answer: str, expected: str) -> float:
    """1.0 when both texts are equal apart from white space at either end."""
    return float(answer.strip() == expected.strip())


def normalised_match(answer: str, expected: str) -> float:
    """1.0 when both texts are equal after `normalise`."""
    return float(normalise(answer) == normalise(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of token precision and recall, counting repeats, as in SQuAD (arXiv 1606.05250).

    Tokens are words and single symbols of the normalised text. Two empty texts score 1.0.
    """
    answered, wanted = _tokens(answer), _tokens(expected)
    if not answered or not wanted:
        return float(answered == wanted)
    shared = sum((Counter(answered) & Counter(wanted)).values())
    return 2 * shared / (len(answered) + len(wanted))


def normalise(text: str) -> str:
    """Fold case and Unicode forms, drop space around symbols and the closing `;` or `.`, join the rest by one space."""
    folded = unicodedata.normalize("NFKC", text).casefold().strip().rstrip(";.")
    return " ".join(_SPACE_AROUND_SYMBOLS.sub(r"\1", folded).split())


def fenced_text(answer: str) -> str:
    """The content of the first Markdown code block, or the whole answer without its outer white space."""
    block = _FENCED.search(answer)
    return (block.group(1) if block else answer).strip()


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", normalise(text))


TEXT_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "normalised_match": normalised_match,
    "token_f1": token_f1,
}
