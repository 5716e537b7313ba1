"""A conversation as the whole project speaks it: OpenAI messages whose tool calls and tools are JSON text.

Text keeps one Parquet schema for every tool a row may name; the renderer parses it back for the template.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

MESSAGE = pa.struct(
    [pa.field("role", pa.string()), pa.field("content", pa.string())]
    + [pa.field(name, pa.string()) for name in ("tool_calls", "tool_call_id", "name")]
    + [pa.field("train", pa.bool_())]  # false: this answer is context, and carries no loss
)
ROLES = ("system", "user", "assistant", "tool")
CALLING = "assistant calling"
FOLLOWS = {
    "start": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user"},
    CALLING: {"tool"},
    "tool": {"tool", "assistant"},
}


class RowRefused(Exception):
    """One row cannot become a conversation; `reason` is counted and `detail` shown, and the run goes on."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and the JSON list of tools the assistant may call."""

    messages: list[dict[str, Any]]
    tools: str | None = None


def message(
    role: str,
    content: str,
    tool_calls: str | None = None,
    tool_call_id: str | None = None,
    name: str | None = None,
    train: bool | None = None,
) -> dict[str, Any]:
    """One message with every field of the Parquet schema."""
    fields = {"tool_calls": tool_calls, "tool_call_id": tool_call_id, "name": name, "train": train}
    return {"role": role, "content": content, **fields}


def check_turns(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a conversation that no chat template renders as meant.

    Order: an optional system message, then user and assistant in turn; tool results follow a call. The last message
    is the assistant's.

    Raises:
        RowRefused: with the place; `no_turns`, `empty_turn`, `unknown_role`, `late_system`, `leading_assistant`,
            `same_role`, `stray_tool_result`, `unanswered_call`, or `unanswered` for a missing final assistant turn.
    """
    state = "start"
    for number, turn in enumerate(messages, start=1):
        role = turn["role"]
        if role not in FOLLOWS[state]:
            raise RowRefused(_misplaced(role, state), f"message {number} is '{role[:60]}' after {state}")
        if not turn["content"].strip() and not turn.get("tool_calls"):
            raise RowRefused("empty_turn", f"message {number} ('{role}') says nothing")
        state = CALLING if role == "assistant" and turn.get("tool_calls") else role
    if state == "start":
        raise RowRefused("no_turns", "the conversation has no message")
    if not state.startswith("assistant"):
        raise RowRefused("unanswered", f"the last of {len(messages)} messages is '{state}', not the assistant's")


def _misplaced(role: str, state: str) -> str:
    if role not in ROLES:
        return "unknown_role"
    if role == "system":
        return "late_system"
    if role == "tool":
        return "stray_tool_result"
    if state in ("start", "system"):
        return "leading_assistant"
    return "same_role" if state.startswith(role) else "unanswered_call"


def spoken_as(turn: Mapping[str, Any]) -> str:
    """A turn's role, for people: an answer that is not learned says so."""
    return f"{turn['role']} (context)" if turn.get("train") is False else turn["role"]


def for_template(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: absent fields left out, tool calls as objects."""
    rendered = []
    for turn in messages:
        kept = {name: value for name, value in turn.items() if value is not None}
        if isinstance(kept.get("tool_calls"), str):
            kept["tool_calls"] = json.loads(kept["tool_calls"])
        rendered.append(kept)
    return rendered


def tools_for_template(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as chat templates expect them, from their JSON text."""
    parsed = json.loads(tools) if isinstance(tools, str) else tools
    return parsed or None
