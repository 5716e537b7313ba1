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
SPEAKERS_IN_TURN = ("user", "assistant")
OLDER_TOOLS = "functions"  # beside `function_call`, before OpenAI had `tools`
FLAGS = ("train", "weight", "training", "loss")  # of axolotl and OpenAI, of its older files, of ms-swift
NOT_LEARNED, LEARNED = ("false", "0", "0.0"), ("true", "1", "1.0", "none", "", "nan")
Thoughts = Literal["refuse", "think_tags", "leave_out"]
THOUGHTS_DESCRIPTION = (
    "What becomes of thoughts in a key of their own (reasoning_content): refuse the row, think_tags puts them before "
    "the answer between <think> and </think>, leave_out trains on the answer alone."
)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class TurnListFormat(RowFormat):
    """A column with the list of turns, and where in a turn its speaker and its text are."""

    tools_column: str = Field(default="tools", description="Column with the tool definitions; need not exist.")
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")
    thoughts: Thoughts = Field(default="refuse", description=THOUGHTS_DESCRIPTION)
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
        listed = list_cell(row, self.turns_column)
        if listed and all(isinstance(turn, str) for turn in listed):  # the user begins, and they take turns
            messages = [message(SPEAKERS_IN_TURN[n % 2], text) for n, text in enumerate(listed)]
            listed = []
        for number, turn in enumerate(listed, start=1):
            if not isinstance(turn, dict):
                raise RowRefused("bad_turns", f"turn {number} is no object: {str(turn)[:120]}")
            messages += self._read(turn, number)
        return finished(messages, cell(row, self.system_column) or self.system, answered)

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers; none where its system message lists them already."""
        found = tools_text(row.get(self.tools_column) or row.get(OLDER_TOOLS))
        first = list_cell(row, self.turns_column)[:1] if found else []
        said = cell(row, self.system_column)
        said += _content(first[0].get(self.content_key), "system") if first and isinstance(first[0], dict) else ""
        return None if TOOLS_TAG in said else found

    def _read(self, turn: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
        if self.role_key not in turn and {"input", "output"} <= turn.keys():  # a question and its answer in one
            return [message("user", plain_text(turn["input"])), message("assistant", plain_text(turn["output"]))]
        tag = plain_text(turn.get(self.role_key))
        role = self.tags.get(tag) or KNOWN_TAGS.get(tag.strip().casefold(), tag)
        content, calls = _content(turn.get(self.content_key), role), None
        if role == "function_call":
            return [message("assistant", "", tool_calls_text(content), train=_learned(turn, number))]
        if role == "assistant":
            content = self._with_thoughts(turn, content, number)
            calls = tool_calls_text(turn.get("tool_calls") or turn.get("function_call"))
            content, calls = (content, calls) if calls else tagged_calls(content)
        elif role == "tool":
            content = untagged_result(content)
        train = _learned(turn, number) if role == "assistant" else None
        return [message(role, content, calls, _optional(turn.get("tool_call_id")), _optional(turn.get("name")), train)]

    def _with_thoughts(self, turn: Mapping[str, Any], content: str, number: int) -> str:
        """The answer with the thoughts that stand beside it; leaving them out teaches to answer without."""
        key = next((key for key in THOUGHTS if turn.get(key)), None)
        if key is None or self.thoughts == "leave_out":
            return content
        if self.thoughts == "refuse":
            raise RowRefused(
                "thoughts_apart",
                f"turn {number} has its thoughts in '{key}'; set the format's thoughts to think_tags or leave_out",
            )
        return f"<think>\n{plain_text(turn[key]).strip()}\n</think>\n\n{content}"


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


def _learned(turn: Mapping[str, Any], number: int) -> bool | None:
    """False for an answer that is not to be learned, by any of the flags that trainers know; None without a word."""
    for flag in (flag for flag in FLAGS if flag in turn):
        said = str(turn[flag]).casefold()
        if said in NOT_LEARNED:
            return False
        if said not in LEARNED:
            raise RowRefused("partial_weight", f"turn {number} has {flag} {said}; an answer is learned or it is not")
    return None


def _content(content: Any, role: str) -> str:
    """Text of a turn: a string, nothing, a list of text parts, or what a tool returned as JSON."""
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") in TEXT_PARTS for p in content):
        return "".join(plain_text(part.get("text")) for part in content)
    if isinstance(content, (list, dict)) and role in ("tool", "function_call"):
        return json.dumps(content, ensure_ascii=False)
    if isinstance(content, (list, dict)):
        raise RowRefused("not_text", f"a message of '{role}' has parts other than text: {_kinds(content)}")
    return plain_text(content)


def _kinds(content: list[Any] | dict[str, Any]) -> str:
    """The kinds of parts that are no text, such as image_url; or the content's start where it has none."""
    parts = content if isinstance(content, list) else [content]
    named = [str(part.get("type")) for part in parts if isinstance(part, dict) and part.get("type")]
    return ", ".join(dict.fromkeys(kind for kind in named if kind not in TEXT_PARTS)) or str(content)[:120]


def _optional(value: Any) -> str | None:
    return None if value is None else plain_text(value) or None
