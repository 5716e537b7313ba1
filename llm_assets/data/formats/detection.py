"""`type: auto`: which format reads a row, told by its columns and by what stands in them.

Each row is looked at by itself, so files of different shapes may stand in one lineage. What is guessed is shown on the
asset page; a shape that could be read in two ways is refused with what to write instead.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llm_assets.core import LLMAssetsError
from llm_assets.data.formats.columns import AlpacaFormat, PromptCompletionFormat, TextToSQLFormat
from llm_assets.data.formats.row_format import RowFormat
from llm_assets.data.formats.turn_list import OpenAIMessagesFormat, ShareGPTFormat
from llm_assets.data.messages import RowRefused

TURN_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
TOOLS = "tools"
ASKING = ("instruction", "prompt", "question", "query", "problem", "input", "inputs")
ANSWERING = ("completion", "response", "output", "answer", "solution", "target", "targets", "sql", "query", "reply")
CONTEXT = ("input", "context")  # what an instruction is about
SYSTEM = ("system", "system_prompt")
SCHEMA = ("sql_context", "context", "schema", "create_table", "ddl")
DDL = re.compile(r"\bCREATE\s+(?:TEMP\w*\s+)?TABLE\b", re.IGNORECASE)
REMEDIES = (
    ({"chosen"}, "Rows of preference pairs: read the preferred answer with type: openai_messages, "
                 "messages_column: chosen, or type: prompt_completion, completion_column: chosen."),
    ({"message_id", "parent_id"}, "Rows of single messages in reply trees: join each thread into one row first."),
    ({"data"}, "If the file is one object around its rows, write the list of rows as the file instead."),
    ({"text"}, "Rows of running text hold no question and answer: split them into columns first, or write the "
               "messages with type: prompt_template."),
)  # fmt: skip


class FormatUnknown(LLMAssetsError):
    """No format reads the columns at hand."""


class AutoFormat(RowFormat):
    """Whatever format reads the row: messages, ShareGPT, Alpaca, prompt and completion, or text-to-SQL."""

    type: Literal["auto"] = "auto"

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
        if not row.get(TOOLS):
            return None
        parsed = _with_lists(row)
        return self.format_of(parsed, answered=False).tools(parsed)

    def format_of(self, row: Mapping[str, Any], answered: bool = True) -> RowFormat:
        """The format of one row; raises `RowRefused` (`no_format`) where none reads it."""
        try:
            return detect_format(list(row), row, answered=answered, system=self.system)
        except FormatUnknown as error:
            raise RowRefused("no_format", str(error)) from None


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
    filled = tuple(name for name in columns if row.get(name) not in (None, "") and not _mere_text(name, row[name]))
    role_key, content_key = _turn_keys(row)
    schema = next((c for c in columns if c.casefold() in SCHEMA and DDL.search(str(row.get(c) or ""))), None)
    try:
        return _detected(filled, role_key, content_key, schema, answered, system)
    except FormatUnknown:  # what the answer should be in may be null: the row is then refused for its empty turn
        if not answered:
            raise
        whole = _detected(tuple(columns), role_key, content_key, schema, answered, system)
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
    raise FormatUnknown(_unknown(columns))


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
    if asking.casefold() == "instruction" or context:
        given |= {"instruction_column": asking, **({"output_column": answering} if answering else {})}
        return AlpacaFormat.model_validate({**given, **({"input_column": context} if context else {})})
    answer = {"completion_column": answering} if answering else {}
    return PromptCompletionFormat.model_validate({**given, "prompt_column": asking, **answer})


def _mere_text(name: str, value: Any) -> bool:
    """Whether a column named like a list of turns holds none; text that begins like a list is one gone wrong."""
    return name.casefold() in TURN_COLUMNS and isinstance(value, str) and not value.lstrip().startswith("[")


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
    return next((name for name in row if name.casefold() in TURN_COLUMNS and row[name]), None)


def _first(named: Mapping[str, str], wanted: Sequence[str]) -> str | None:
    return next((named[name] for name in wanted if name in named), None)


def _unknown(columns: Sequence[str]) -> str:
    remedy = next((text for needed, text in REMEDIES if needed <= {c.casefold() for c in columns}), None)
    return (
        f"No format reads the columns {', '.join(columns) or '(none)'}. Known: a list of turns in one of "
        f"{', '.join(TURN_COLUMNS)}; a question in one of {', '.join(ASKING)} with its answer in one of "
        f"{', '.join(ANSWERING)}; or sql_context, sql_prompt and sql. "
        + (
            remedy
            or "Name your columns in a format's `…_column` fields, or write the messages with type: prompt_template."
        )
    )


def described(format: RowFormat) -> str:
    """A format in a few words: its type and what differs from the type's defaults."""
    differs = {n: v for n, v in format.model_dump(mode="json").items() if n.endswith(("_column", "_key")) and
               type(format).model_fields[n].default != v}  # fmt: skip
    return str(format.model_dump()["type"]) + (f" {json.dumps(differs)}" if differs else "")
