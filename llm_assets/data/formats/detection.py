"""`type: auto`: which format reads a row, told by its columns and by what stands in them.

Each row is looked at by itself, so files of different shapes may stand in one lineage. What is guessed is shown on the
asset page; a shape that could be read in two ways is refused with what to write instead.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from llm_assets.core import LLMAssetsError
from llm_assets.data.formats.columns import AlpacaFormat, PromptCompletionFormat, TextToSQLFormat
from llm_assets.data.formats.known_columns import (
    ANSWERING,
    ASKING,
    CONTENT_KEYS,
    CONTEXT,
    ROLE_KEYS,
    SCHEMA,
    SYSTEM,
    TOOLS,
    TURN_COLUMNS,
    VAGUE,
    unknown_columns,
)
from llm_assets.data.formats.row_format import RowFormat
from llm_assets.data.formats.turn_list import (
    THOUGHTS_DESCRIPTION,
    OpenAIMessagesFormat,
    ShareGPTFormat,
    Thoughts,
    TurnListFormat,
)
from llm_assets.data.messages import RowRefused

DDL = re.compile(r"\bCREATE\s+(?:TEMP\w*\s+)?TABLE\b", re.IGNORECASE)


class FormatUnknown(LLMAssetsError):
    """No format reads the columns at hand."""


class AutoFormat(RowFormat):
    """Whatever format reads the row: messages, ShareGPT, Alpaca, prompt and completion, or text-to-SQL."""

    type: Literal["auto"] = "auto"
    thoughts: Thoughts = Field(default="refuse", description=THOUGHTS_DESCRIPTION)

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """None is needed: each row is read by what it has."""
        return ()

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """Messages as the detected format reads them."""
        parsed = _with_lists(row)
        return self.format_of(parsed, answered).turns(parsed, answered)

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers, as the detected format reads them."""
        if not any(row.get(name) for name in TOOLS):
            return None
        parsed = _with_lists(row)
        return self.format_of(parsed, answered=False).tools(parsed)

    def format_of(self, row: Mapping[str, Any], answered: bool = True) -> RowFormat:
        """The format of one row; raises `RowRefused` (`no_format`) where none reads it."""
        try:
            found = detect_format(list(row), row, answered=answered, system=self.system)
        except FormatUnknown as error:
            raise RowRefused("no_format", str(error)) from None
        if self.thoughts != "refuse" and isinstance(found, TurnListFormat):
            return found.model_copy(update={"thoughts": self.thoughts})
        return found


def detect_format(
    columns: Sequence[str], row: Mapping[str, Any] | None = None, answered: bool = True, system: str | None = None
) -> RowFormat:
    """Name the format that reads the given columns.

    Args:
        columns: Names of the columns; with a row, those that are null in it count only if nothing else fits.
        row: A sample row: the keys of its turns and a CREATE TABLE in it decide between formats.
        answered: Whether the row needs an answer, or only a question.
        system: System message of rows that bring none.

    Raises:
        FormatUnknown: none does; lists what each needs and, for common shapes, what to write.
    """
    if row is None:
        return _detected(tuple(columns), "role", "content", None, answered, system, named_only=True)
    row = _with_lists(row)
    try:
        return _detect_in(row, tuple(c for c in columns if not _is_no_list(c, row.get(c))), answered, system)
    except FormatUnknown:
        raise FormatUnknown(unknown_columns(columns)) from None


def _detect_in(row: Mapping[str, Any], columns: tuple[str, ...], answered: bool, system: str | None) -> RowFormat:
    filled = tuple(name for name in columns if row.get(name) not in (None, "") and not _is_no_text(name, row[name]))
    role_key, content_key = _turn_keys(row)
    schema = next((c for c in columns if c.casefold() in SCHEMA and DDL.search(str(row.get(c) or ""))), None)
    try:
        return _detected(filled, role_key, content_key, schema, answered, system)
    except FormatUnknown:  # what the answer should be in may be null: the row is then refused for its empty turn
        if not answered:
            raise
        whole = _detected(columns, role_key, content_key, schema, answered, system)
        if any(row.get(name) not in (None, "") for name in whole.answer_columns):
            return whole
        try:
            return _detected(filled, role_key, content_key, schema, False, system)
        except FormatUnknown:
            return whole


@functools.lru_cache(maxsize=4096)
def _detected(
    columns: tuple[str, ...],
    role_key: str,
    content_key: str,
    schema: str | None,
    answered: bool,
    system: str | None,
    named_only: bool = False,
) -> RowFormat:
    named = {name.casefold(): name for name in reversed(columns)}
    turns = _first(named, TURN_COLUMNS)
    asking, answering = _first(named, ASKING), None
    if asking:
        answering = next((named[n] for n in ANSWERING if n in named and named[n] != asking), None)
    if {"sql_context", "sql_prompt"} <= named.keys() and ("sql" in named or not answered):
        return TextToSQLFormat(system=system)
    if turns and named_only and turns == "conversations":
        return ShareGPTFormat(system=system)
    if turns:
        return _turn_list(turns, role_key, content_key, _first(named, SYSTEM), system)
    if asking and (answering or not answered):
        return _columns(named, asking, answering, schema, system)
    raise FormatUnknown(unknown_columns(columns))


def _turn_list(turns: str, role_key: str, content_key: str, system_column: str | None, system: str | None) -> RowFormat:
    shared = {"role_key": role_key, "content_key": content_key, "system": system}
    if system_column:
        shared["system_column"] = system_column
    if role_key == "role":
        return OpenAIMessagesFormat.model_validate({**shared, "messages_column": turns})
    return ShareGPTFormat.model_validate({**shared, "conversations_column": turns})


def _columns(
    named: Mapping[str, str], asking: str, answering: str | None, schema: str | None, system: str | None
) -> RowFormat:
    given: dict[str, Any] = {"system": system}
    if schema:
        given |= {"schema_column": schema, "question_column": asking, "keep_columns": ()}
        return TextToSQLFormat.model_validate({**given, **({"sql_column": answering} if answering else {})})
    if system_column := _first(named, SYSTEM):
        given["system_column"] = system_column
    context = next((named[n] for n in CONTEXT if n in named and named[n] not in (asking, answering)), None)
    if "history" in named:
        given["history_column"] = named["history"]
    if asking.casefold() == "instruction" or context or "history" in named:
        given |= {"instruction_column": asking, **({"output_column": answering} if answering else {})}
        return AlpacaFormat.model_validate({**given, **({"input_column": context} if context else {})})
    answer = {"completion_column": answering} if answering else {}
    return PromptCompletionFormat.model_validate({**given, "prompt_column": asking, **answer})


def _is_no_list(name: str, value: Any) -> bool:
    """Whether a column named like a list of turns holds text; one that begins like a list is a list gone wrong."""
    name = name.casefold()
    if name in VAGUE:
        return not _are_turns(value)
    return name in TURN_COLUMNS and isinstance(value, str) and value != "" and not value.lstrip().startswith("[")


def _is_no_text(name: str, value: Any) -> bool:
    """Whether a column named like a question or an answer holds a list or an object that is neither."""
    if not isinstance(value, (list, dict)) or not {name.casefold()} & {*ASKING, *ANSWERING}:
        return False
    return not (isinstance(value, list) and value and all(isinstance(item, dict) for item in value))


def _are_turns(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, str) or (isinstance(first, dict) and any(key in first for key in ROLE_KEYS))


def _with_lists(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its list of turns parsed, where it is JSON text, so that nobody has to parse it again."""
    column = _turn_column(row)
    if column is None or not isinstance(row[column], str):
        return row
    try:
        return {**row, column: json.loads(row[column])}
    except (ValueError, RecursionError):
        return row


def _turn_keys(row: Mapping[str, Any]) -> tuple[str, str]:
    """Keys of speaker and text in the row's list of turns."""
    column = _turn_column(row)
    turns = row[column] if column else None
    keys = turns[0].keys() if isinstance(turns, list) and turns and isinstance(turns[0], dict) else ()
    role = next((key for key in ROLE_KEYS if key in keys), "role")
    return role, next((key for key in CONTENT_KEYS if key in keys), "content")


def _turn_column(row: Mapping[str, Any]) -> str | None:
    found = [name for name in row if name.casefold() in TURN_COLUMNS and row[name]]
    return min(found, key=lambda name: TURN_COLUMNS.index(name.casefold()), default=None)


def _first(named: Mapping[str, str], wanted: Sequence[str]) -> str | None:
    return next((named[name] for name in wanted if name in named), None)


def described(format: RowFormat) -> str:
    """A format in a few words: its type and what differs from the type's defaults."""
    differs = {n: v for n, v in format.model_dump(mode="json").items() if n.endswith(("_column", "_key")) and
               type(format).model_fields[n].default != v}  # fmt: skip
    return str(format.model_dump()["type"]) + (f" {json.dumps(differs)}" if differs else "")
