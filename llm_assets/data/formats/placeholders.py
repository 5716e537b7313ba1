"""Text with placeholders for columns, in the two styles people write: `{column}` and MLflow's `{{column}}`.

A text is in one style. With doubled braces single ones are literal, so JSON may stand in the prompt as it is; with
single braces a literal brace is doubled. A text that seems to be both is refused rather than guessed at.
"""

import re
import string
from collections.abc import Mapping

DOUBLE = re.compile(r"\{\{\s*([^\W\d][\w.-]*)\s*\}\}")
SINGLE = re.compile(r"\{[^\W\d]\w*\}")
JINJA_BLOCK = re.compile(r"\{%(?!-?\s*(?:end)?raw\b).*?%\}", re.DOTALL)  # the loader of a YAML file takes out raw


def placeholder_columns(text: str) -> tuple[str, ...]:
    """Columns a text names, in order of first use.

    Raises:
        ValueError: both styles at once, a Jinja block, unbalanced braces, or a placeholder that is no column name.
    """
    if block := JINJA_BLOCK.search(text):
        raise ValueError(f"'{text[:80]}' has the Jinja block '{block.group()}'; only {{{{column}}}} is filled in")
    doubled = DOUBLE.findall(text)
    if not doubled:
        return format_columns(text)
    if single := SINGLE.search(DOUBLE.sub("", text)):
        raise ValueError(
            f"'{text[:80]}' has both {{{{{doubled[0]}}}}} and {single.group()}; write every placeholder one way"
        )
    return tuple(dict.fromkeys(doubled))


def format_columns(text: str) -> tuple[str, ...]:
    """Columns of a text in `{column}` style, in order of first use.

    Raises:
        ValueError: unbalanced braces, or a placeholder that is not a plain column name.
    """
    fields = [field for _, field, spec, conversion in string.Formatter().parse(text) if field is not None]
    for field in fields:
        if not field or re.search(r"[.\[\]\"']", field):
            raise ValueError(
                f"'{text[:80]}' has the placeholder '{{{field}}}'; write {{column}}, and {{{{ for a literal brace"
            )
    return tuple(dict.fromkeys(fields))


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with every placeholder replaced once; braces inside a value stay as they are."""
    if DOUBLE.search(text):
        return DOUBLE.sub(lambda found: values[found.group(1)], text)
    return text.format_map(dict(values))
