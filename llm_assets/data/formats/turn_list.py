"""Rows that hold a list of turns, each a speaker and a text: OpenAI messages and ShareGPT conversations.

The two differ in the names of keys only. Public files write the same speaker in many ways, so every spelling seen in
the wild is known here, and a lineage adds its own with `tags`.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from llm_assets.data.formats.row_format import RowFormat, cell, finished, list_cell, plain_text
from llm_assets.data.messages import RowRefused, message
from llm_assets.data.tool_calls import TOOLS_TAG, tagged_calls, tool_calls_text, tools_text, untagged_result

Speaker = Literal["system", "user", "assistant", "tool", "function_call"]
SPELLINGS: dict[Speaker, str] = {
    "user": "user human prompter instruction client customer input",
    "assistant": "assistant gpt bot chatgpt bing bard claude model ai chatbot agent gpt4 gpt-4 output",
    "system": "system developer",
    "tool": "tool observation function tool_response function_response function_output tool_output ipython",
    "function_call": "function_call tool_call function-call functioncall tool_calls",
}
KNOWN_TAGS: dict[str, Speaker] = {tag: role for role, tags in SPELLINGS.items() for tag in tags.split()}
TEXT_PARTS = ("text", "input_text", "output_text")


class TurnListFormat(RowFormat):
    """A column with the list of turns, and where in a turn its speaker and its text are."""

    tools_column: str = Field(default="tools", description="Column with the tool definitions; need not exist.")
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")
    role_key: str = Field(description="Key of a turn's speaker.")
    content_key: str = Field(description="Key of a turn's text.")
    tags: dict[str, Speaker] = Field(
        default={},
        description="Speakers beyond the usual ones (human, gpt, bot, observation, …): user, assistant, system, tool, "
        "or function_call (an assistant calling).",
    )

    @property
    @abstractmethod
    def turns_column(self) -> str:
        """Column with the list of turns."""

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.turns_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The row's turns; unanswered, without a final assistant message."""
        messages: list[dict[str, Any]] = []
        for number, turn in enumerate(list_cell(row, self.turns_column), start=1):
            if not isinstance(turn, dict):
                raise RowRefused("bad_turns", f"turn {number} is no object: {str(turn)[:120]}")
            messages += self._read(turn, number)
        return finished(messages, cell(row, self.system_column) or self.system, answered)

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers; none where its system message lists them already."""
        found = tools_text(row.get(self.tools_column))
        first = list_cell(row, self.turns_column)[:1] if found else []
        said = cell(row, self.system_column) + (plain_text(first[0].get(self.content_key)) if first else "")
        return None if TOOLS_TAG in said else found

    def _read(self, turn: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        if self.role_key not in turn and {"input", "output"} <= turn.keys():  # a question and its answer in one
            return [message("user", plain_text(turn["input"])), message("assistant", plain_text(turn["output"]))]
        tag = plain_text(turn.get(self.role_key))
        role = self.tags.get(tag) or KNOWN_TAGS.get(tag.strip().casefold(), tag)
        content, calls = _content(turn.get(self.content_key), role), None
        if role == "function_call":
            return [message("assistant", "", tool_calls_text(content))]
        if role == "assistant":
            _refuse_unlearned(turn, number)
            calls = tool_calls_text(turn.get("tool_calls") or turn.get("function_call"))
            content, calls = (content, calls) if calls else tagged_calls(content)
        elif role == "tool":
            content = untagged_result(content)
        return [message(role, content, calls, _optional(turn.get("tool_call_id")), _optional(turn.get("name")))]


class OpenAIMessagesFormat(TurnListFormat):
    """A list of `{role, content, tool_calls, tool_call_id, name}`, as OpenAI and TRL write them."""

    type: Literal["openai_messages"] = "openai_messages"
    messages_column: str = Field(default="messages", description="Column with the list of messages.")
    role_key: str = Field(default="role", description="Key of a turn's speaker.")
    content_key: str = Field(default="content", description="Key of a turn's text.")

    @property
    def turns_column(self) -> str:
        """Column with the list of turns."""
        return self.messages_column


class ShareGPTFormat(TurnListFormat):
    """A list of `{from, value}` with tags such as human, gpt, system, function_call and observation."""

    type: Literal["sharegpt"] = "sharegpt"
    conversations_column: str = Field(default="conversations", description="Column with the list of turns.")
    role_key: str = Field(default="from", description="Key of a turn's speaker.")
    content_key: str = Field(default="value", description="Key of a turn's text.")

    @property
    def turns_column(self) -> str:
        """Column with the list of turns."""
        return self.conversations_column


def _refuse_unlearned(turn: Mapping[str, Any], number: int) -> None:
    """A turn that says it must not be learned from; dropping the mark would train on it."""
    if turn.get("weight") in (0, "0") or turn.get("train") is False:
        raise RowRefused("unlearned_turn", f"turn {number} has weight 0; conversations learn every assistant turn")


def _content(content: Any, role: str) -> str:
    """Text of a turn: a string, nothing, a list of text parts, or what a tool returned as JSON."""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") in TEXT_PARTS for p in content):
        return "".join(plain_text(part.get("text")) for part in content)
    if isinstance(content, dict) or (isinstance(content, list) and role in ("tool", "function_call")):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        raise RowRefused("not_text", f"a message has parts other than text: {str(content)[:120]}")
    return plain_text(content)


def _optional(value: Any) -> str | None:
    return None if value is None else plain_text(value) or None
