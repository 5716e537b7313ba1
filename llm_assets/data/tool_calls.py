"""Tool calls and tool definitions, in the shapes public datasets write them, as one canonical JSON text.

Arguments become objects whether they were written as objects or as JSON text, so that a chat template renders them
once. Calls written into the text between `<tool_call>` tags (Hermes, Qwen) are taken out of it.
"""

import ast
import json
import re
from typing import Any

from llm_assets.data.messages import RowRefused

TAGGED_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
TAGGED_RESULT = re.compile(r"\A\s*<tool_response>\s*(.*?)\s*</tool_response>\s*\Z", re.DOTALL)
CALL_IN_TEXT = re.compile(r"\A(.*?)<functioncall>\s*(\{.*\})\s*\Z", re.DOTALL)  # Glaive
QUOTED_ARGUMENTS = re.compile(r"(\"arguments\"\s*:\s*)'(.*)'(\s*\}\s*)\Z", re.DOTALL)
TOOLS_TAG = "<tools>"  # a system message that lists the tools itself


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
    listed = [_parsed(tool, "bad_tools") for tool in (parsed if isinstance(parsed, list) else [parsed])]
    if not all(isinstance(tool, dict) for tool in listed):
        raise RowRefused("bad_tools", f"tools are not a list of objects: {str(tools)[:120]}")
    wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in listed]
    for tool in wrapped:
        tool_name(tool)
    return json.dumps(wrapped, ensure_ascii=False)


def tool_name(tool: Any) -> str:
    """Name of a tool definition, `{"function": {"name": …}}` or `{"name": …}`.

    Raises:
        RowRefused: `bad_tools`, for whatever has none.
    """
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise RowRefused("bad_tools", f"no function name in {str(tool)[:120]}")
    return name


def tagged_calls(content: str) -> tuple[str, str | None]:
    """Take `<tool_call>{…}</tool_call>` out of an assistant's text: `(what else it says, the calls' JSON text)`.

    As well as Glaive's `<functioncall> {…}`, whose arguments are JSON between single quotes.

    Raises:
        RowRefused: `bad_tool_call`, also for a tag that is never closed.
    """
    if found := CALL_IN_TEXT.match(content):
        call = QUOTED_ARGUMENTS.sub(r"\1\2\3", found.group(2))
        return found.group(1).strip(), tool_calls_text([_object(call)])
    if "<tool_call>" not in content:
        return content, None
    rest = TAGGED_CALL.sub("", content)
    if "<tool_call>" in rest:
        raise RowRefused("bad_tool_call", f"<tool_call> is not closed: {rest[rest.index('<tool_call>') :][:120]}")
    return rest.strip(), tool_calls_text([_object(text) for text in TAGGED_CALL.findall(content)])


def listed_calls(value: Any) -> str | None:
    """A list of calls, or its JSON text, as canonical JSON text; None where it is anything else.

    Raises:
        RowRefused: `bad_tool_call`, for a list of objects with names that are no calls all the same.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, list) and value and all(isinstance(call, dict) and "name" in call for call in value):
        return tool_calls_text(value)
    return None


def untagged_result(content: str) -> str:
    """A tool's answer without the `<tool_response>` around it, which chat templates write themselves."""
    found = TAGGED_RESULT.match(content)
    return found.group(1) if found and "<tool_response>" not in found.group(1) else content


def _object(text: str) -> Any:
    """JSON, or the Python literal with single quotes that some datasets hold in its place."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise RowRefused("bad_tool_call", f"not JSON ({error}): {text[:120]}") from None


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowRefused("bad_tool_call", f"no function name in {str(call)[:120]}")
    arguments = _parsed(function.get("arguments", function.get("parameters")), "bad_tool_call")
    if arguments and not isinstance(arguments, dict):
        raise RowRefused("bad_tool_call", f"arguments of {function['name']} are no object: {str(arguments)[:120]}")
    wrapped: dict[str, Any] = {"type": "function"}
    if call.get("id"):
        wrapped["id"] = str(call["id"])
    wrapped["function"] = {"name": function["name"], "arguments": arguments or {}}
    return wrapped


def _parsed(value: Any, reason: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        raise RowRefused(reason, f"not JSON ({error}): {value[:120]}") from None
