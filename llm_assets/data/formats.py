"""How a source row reads as a conversation: one config per shape that datasets come in, told apart by `type`.

Adding a shape is one class here. A format names the columns it reads, so a file without them is refused at ingestion.
"""

import json
import re
import string
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.messages import Conversation, RowRefused, message, tool_calls_text, tools_text
from llm_assets.data.sql_text import without_inserts

SAME_ROLES = {"developer": "system", "function": "tool"}  # newer and older names of OpenAI


class FormatUnknown(LLMAssetsError):
    """No format reads the columns at hand."""


class _Format(Config):
    system: str | None = Field(
        default=None, description="System message of every conversation that brings none of its own."
    )
    keep_columns: tuple[str, ...] = Field(
        default=(), description="Source columns that travel with the conversation as `extras`, for evaluation."
    )

    @property
    @abstractmethod
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return ()

    @abstractmethod
    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """Messages of a row, with or without what the answer columns say."""

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers."""
        return None


class TextToSQLFormat(_Format):
    """A database schema and a question, answered by one SQL statement."""

    type: Literal["text_to_sql"] = "text_to_sql"
    schema_column: str = Field(default="sql_context", description="Column with the CREATE (and INSERT) statements.")
    question_column: str = Field(default="sql_prompt", description="Column with the question.")
    sql_column: str = Field(default="sql", description="Column with the answer.")
    prompt: str = Field(default="{schema}\n\n{question}", description="User message, from {schema} and {question}.")
    ddl_only: bool = Field(
        default=True, description="Leave INSERT statements out of the prompt; they stay in `extras`."
    )
    keep_columns: tuple[str, ...] = Field(default=("sql_context", "sql"), description="As in every format.")

    @field_validator("prompt")
    @classmethod
    def _known_fields(cls, prompt: str) -> str:
        unknown = sorted({*template_columns(prompt)} - {"schema", "question"})
        if unknown:
            raise ValueError(f"prompt '{prompt}' names {unknown}; it may use {{schema}} and {{question}}")
        return prompt

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.schema_column, self.question_column)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.sql_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """System message if any, schema and question, and the SQL."""
        schema = _cell(row, self.schema_column)
        schema = without_inserts(schema) if self.ddl_only else schema
        asked = self.prompt.format(schema=schema, question=_cell(row, self.question_column))
        return _exchange(self.system, asked, _cell(row, self.sql_column) if answered else None)


class OpenAIMessagesFormat(_Format):
    """A list of `{role, content, tool_calls, tool_call_id, name}`, as OpenAI and TRL write them."""

    type: Literal["openai_messages"] = "openai_messages"
    messages_column: str = Field(default="messages", description="Column with the list of messages.")
    tools_column: str = Field(default="tools", description="Column with the tool definitions; need not exist.")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.messages_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The row's messages; unanswered, without a final assistant message."""
        listed = _list_cell(row, self.messages_column)
        messages = [
            message(
                SAME_ROLES.get(str(turn.get("role")), str(turn.get("role"))),
                _content(turn.get("content")),
                tool_calls_text(turn.get("tool_calls") or turn.get("function_call")),
                turn.get("tool_call_id"),
                turn.get("name"),
            )
            for turn in listed
        ]
        return _finish(messages, self.system, answered)

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers."""
        return tools_text(row.get(self.tools_column))


class ShareGPTFormat(_Format):
    """A list of `{from, value}` with the tags human, gpt, system, function_call and observation."""

    type: Literal["sharegpt"] = "sharegpt"
    conversations_column: str = Field(default="conversations", description="Column with the list of turns.")
    tools_column: str = Field(default="tools", description="Column with the tool definitions; need not exist.")
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")
    role_key: str = Field(default="from", description="Key of a turn's speaker.")
    content_key: str = Field(default="value", description="Key of a turn's text.")
    tags: dict[str, str] = Field(
        default={
            "human": "user",
            "user": "user",
            "gpt": "assistant",
            "assistant": "assistant",
            "system": "system",
            "function_call": "function_call",
            "observation": "tool",
            "tool": "tool",
        },
        description="What each speaker is: user, assistant, system, tool, or function_call (an assistant calling).",
    )

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.conversations_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The row's turns; unanswered, without a final assistant message."""
        messages = [self._turn(turn) for turn in _list_cell(row, self.conversations_column)]
        return _finish(messages, _cell(row, self.system_column) or self.system, answered)

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers."""
        return tools_text(row.get(self.tools_column))

    def _turn(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        tag, content = str(turn.get(self.role_key)), _content(turn.get(self.content_key))
        role = self.tags.get(tag, tag)
        if role == "function_call":
            return message("assistant", "", tool_calls_text(content))
        return message(role, content)


class AlpacaFormat(_Format):
    """An instruction with an optional input, answered by an output; optional history and system columns."""

    type: Literal["alpaca"] = "alpaca"
    instruction_column: str = Field(default="instruction", description="Column with the instruction.")
    input_column: str = Field(
        default="input", description="Column appended to the instruction on a new line; need not exist."
    )
    output_column: str = Field(default="output", description="Column with the answer.")
    history_column: str = Field(
        default="history", description="Column with earlier [question, answer] pairs; need not exist."
    )
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.instruction_column,)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.output_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """System message and history if any, the instruction with its input, and the output."""
        instruction, context = _cell(row, self.instruction_column), _cell(row, self.input_column)
        asked = f"{instruction}\n{context}" if context else instruction
        last = _exchange(None, asked, _cell(row, self.output_column) if answered else None)
        earlier = []
        for pair in _list_cell(row, self.history_column, optional=True):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise RowRefused("bad_roles", f"history entry is not a [question, answer] pair: {str(pair)[:120]}")
            earlier += _exchange(None, str(pair[0]), str(pair[1]))
        return _finish(earlier + last, _cell(row, self.system_column) or self.system, answered=True)


class PromptCompletionFormat(_Format):
    """A prompt and its completion, each a text or a list of messages."""

    type: Literal["prompt_completion"] = "prompt_completion"
    prompt_column: str = Field(default="prompt", description="Column with the prompt.")
    completion_column: str = Field(default="completion", description="Column with the completion.")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.prompt_column,)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.completion_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The prompt as a user message and the completion as the assistant's, unless they are messages already."""
        messages = self._part(row, self.prompt_column, "user")
        messages += self._part(row, self.completion_column, "assistant") if answered else []
        return _finish(messages, self.system, answered=True)

    def _part(self, row: Mapping[str, Any], column: str, role: str) -> list[dict[str, Any]]:
        text = _cell(row, column)
        if text.startswith("[{") and '"role"' in text:
            return [message(str(t.get("role")), _content(t.get("content"))) for t in _list_cell(row, column)]
        return [message(role, text)]


class TemplateFormat(_Format):
    """Messages written over any columns: `prompt: "Translate to French: {english}"`, `completion: "{french}"`."""

    type: Literal["template"] = "template"
    prompt: str = Field(description="User message with {column} placeholders; {{ and }} are literal braces.")
    completion: str = Field(description="Assistant message, likewise.")
    system: str | None = Field(default=None, description="System message, likewise.")

    @field_validator("prompt", "completion", "system")
    @classmethod
    def _plain_fields(cls, template: str | None) -> str | None:
        template_columns(template or "")
        return template

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return tuple(dict.fromkeys(template_columns(self.prompt) + template_columns(self.system or "")))

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return template_columns(self.completion)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The three templates, filled in."""
        system = self._fill(self.system, row) if self.system else None
        return _exchange(system, self._fill(self.prompt, row), self._fill(self.completion, row) if answered else None)

    @staticmethod
    def _fill(template: str, row: Mapping[str, Any]) -> str:
        return template.format_map({name: _cell(row, name) for name in template_columns(template)})


FormatConfig = Annotated[
    TextToSQLFormat | OpenAIMessagesFormat | ShareGPTFormat | AlpacaFormat | PromptCompletionFormat | TemplateFormat,
    Field(discriminator="type"),
]
DETECTABLE = (TextToSQLFormat, OpenAIMessagesFormat, ShareGPTFormat, AlpacaFormat, PromptCompletionFormat)


def required_columns(format: FormatConfig) -> tuple[str, ...]:
    """Columns every training row must have: prompt, answer and `keep_columns`."""
    return tuple(dict.fromkeys((*format.prompt_columns, *format.answer_columns, *format.keep_columns)))


def conversation(row: Mapping[str, Any], format: FormatConfig) -> Conversation:
    """Read a training row; raises `RowRefused` where a cell does not parse."""
    return Conversation(format.turns(row, answered=True), format.tools(row))


def prompt_messages(row: Mapping[str, Any], format: FormatConfig) -> list[dict[str, Any]]:
    """Read a row to be answered: the conversation without its final assistant turn; the answer columns may be absent.

    Raises:
        RowRefused: a cell does not parse.
    """
    return format.turns(row, answered=False)


def prompt_tools(row: Mapping[str, Any], format: FormatConfig) -> str | None:
    """JSON text of the tools a row offers, if any."""
    return format.tools(row)


def detect_format(columns: Sequence[str]) -> FormatConfig:
    """Name the format with default column names that the given columns satisfy.

    Raises:
        FormatUnknown: none does; lists what each needs.
    """
    for candidate in DETECTABLE:
        if set(required_columns(candidate())) <= set(columns):
            return candidate()
    needs = "; ".join(f"{c().type}: {', '.join(required_columns(c()))}" for c in DETECTABLE)
    raise FormatUnknown(
        f"No format reads the columns {', '.join(columns)}. Known: {needs}. "
        "Name your columns in one of them, or write the messages with type: template."
    )


def template_columns(template: str) -> tuple[str, ...]:
    """Columns a `{column}` template names, in order of first use.

    Raises:
        ValueError: unbalanced braces, or a placeholder that is not a plain column name.
    """
    fields = [field for _, field, spec, conversion in string.Formatter().parse(template) if field is not None]
    for field in fields:
        if not field or re.search(r"[.\[\]]", field):
            raise ValueError(f"'{template}' has the placeholder '{{{field}}}'; write {{column}}, and {{{{ for a brace")
    return tuple(dict.fromkeys(fields))


def _exchange(system: str | None, asked: str, answer: str | None) -> list[dict[str, Any]]:
    messages = [message("system", system)] if system else []
    messages.append(message("user", asked))
    return messages if answer is None else [*messages, message("assistant", answer)]


def _finish(messages: list[dict[str, Any]], system: str | None, answered: bool) -> list[dict[str, Any]]:
    if system and (not messages or messages[0]["role"] != "system"):
        messages = [message("system", system), *messages]
    if not answered and messages and messages[-1]["role"] == "assistant":
        return messages[:-1]
    return messages


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else value if isinstance(value, str) else str(value)


def _list_cell(row: Mapping[str, Any], column: str, optional: bool = False) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except json.JSONDecodeError as error:
            raise RowRefused("bad_roles", f"column '{column}' is not JSON: {error}") from None
    if value is None and optional:
        return []
    if not isinstance(value, list) or not (optional or all(isinstance(turn, dict) for turn in value)):
        raise RowRefused("bad_roles", f"column '{column}' is not a list of messages: {str(value)[:120]}")
    return value


def _content(content: Any) -> str:
    """Text of a message: a string, nothing, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return "".join(str(part.get("text", "")) for part in content)
    return json.dumps(content, ensure_ascii=False) if isinstance(content, dict) else _refuse_parts(content)


def _refuse_parts(content: Any) -> str:
    raise RowRefused("not_text", f"a message has parts other than text: {str(content)[:120]}")
