"""SQL scripts taken apart into statements by their quotes and semicolons alone, for any dialect."""

import re

STATEMENT = re.compile(r"""(?:'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|[^;'"/-]+|[^;])+;?""", re.DOTALL)
COMMENTS = re.compile(r"\A(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*", re.DOTALL)


def statements(script: str) -> list[str]:
    """Split a script at semicolons outside quotes and comments; each statement keeps its semicolon."""
    return [found.strip() for found in STATEMENT.findall(script) if found.strip(" \n\t\r;")]


def without_inserts(script: str) -> str:
    """The script without its INSERT statements: what a prompt needs of a schema."""
    return "\n".join(s for s in statements(script) if COMMENTS.sub("", s)[:6].upper() != "INSERT")
