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
)
FOLLOWS = {
    "start": {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user"},
    "assistant calling": {"tool"},
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
    role: str, content: str, tool_calls: str | None = None, tool_call_id: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """One message with every field of the Parquet schema."""
    return {"role": role, "content": content, "tool_calls": tool_calls, "tool_call_id": tool_call_id, "name": name}


def check_turns(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a conversation that no chat template renders as meant.

    Order: an optional system message, then user and assistant in turn; tool results follow a call. The last message
    is the assistant's.

    Raises:
        RowRefused: `bad_roles` or `empty_turn`, with the place.
    """
    state = "start"
    for number, turn in enumerate(messages, start=1):
        role = turn["role"]
        if role not in FOLLOWS[state]:
            raise RowRefused("bad_roles", f"message {number} is '{role}' after {state}")
        if not turn["content"].strip() and not turn.get("tool_calls"):
            raise RowRefused("empty_turn", f"message {number} ('{role}') says nothing")
        state = "assistant calling" if role == "assistant" and turn.get("tool_calls") else role
    if not state.startswith("assistant"):
        raise RowRefused("bad_roles", f"the last message is '{state}', not the assistant's")


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


def tool_calls_text(calls: Any) -> str | None:
    """Tool calls in any common shape as canonical JSON text, arguments as objects.

    Raises:
        RowRefused: `bad_tool_call`.
    """
    parsed = _parsed(calls, "bad_tool_call")
    if not parsed:
        return None
    return json.dumps([_call(c) for c in (parsed if isinstance(parsed, list) else [parsed])], ensure_ascii=False)


def tools_text(tools: Any) -> str | None:
    """Tool definitions in any common shape as canonical JSON text.

    Raises:
        RowRefused: `bad_tools`.
    """
    parsed = _parsed(tools, "bad_tools")
    if not parsed:
        return None
    listed = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(tool, dict) for tool in listed):
        raise RowRefused("bad_tools", f"tools are not a list of objects: {str(tools)[:120]}")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in listed]
    return json.dumps(wrapped, ensure_ascii=False)


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowRefused("bad_tool_call", f"no function name in {str(call)[:120]}")
    arguments = function.get("arguments", {})
    wrapped: dict[str, Any] = {"type": "function"}
    if call.get("id"):
        wrapped["id"] = call["id"]
    wrapped["function"] = {"name": function["name"], "arguments": _parsed(arguments, "bad_tool_call") or {}}
    return wrapped


def _parsed(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except json.JSONDecodeError as error:
        raise RowRefused(reason, f"not JSON ({error}): {value[:120]}") from None
