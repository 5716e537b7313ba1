"""How a source row reads as a conversation: one config per shape that datasets come in, told apart by `type`.

Adding a shape is one class beside the others. A format names the columns it reads, so a file without them is refused
at ingestion.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from llm_assets.data.formats.columns import AlpacaFormat, PromptCompletionFormat, TextToSQLFormat
from llm_assets.data.formats.detection import AutoFormat, FormatUnknown, described, detect_format
from llm_assets.data.formats.prompt_template import (
    TemplateColumnMissing,
    TemplateFormat,
    TemplateUnavailable,
    resolve_templates,
)
from llm_assets.data.formats.row_format import RowFormat, repaired
from llm_assets.data.formats.transcript import TranscriptFormat
from llm_assets.data.formats.turn_list import OpenAIMessagesFormat, ShareGPTFormat
from llm_assets.data.messages import Conversation

__all__ = [
    "AlpacaFormat",
    "AutoFormat",
    "FormatConfig",
    "FormatUnknown",
    "OpenAIMessagesFormat",
    "PromptCompletionFormat",
    "ShareGPTFormat",
    "TemplateColumnMissing",
    "TemplateFormat",
    "TemplateUnavailable",
    "TextToSQLFormat",
    "TranscriptFormat",
    "conversation",
    "described",
    "detect_format",
    "prompt_messages",
    "prompt_tools",
    "required_columns",
    "resolve_templates",
]

FormatConfig = Annotated[
    AutoFormat
    | TextToSQLFormat
    | OpenAIMessagesFormat
    | ShareGPTFormat
    | AlpacaFormat
    | PromptCompletionFormat
    | TemplateFormat
    | TranscriptFormat,
    Field(discriminator="type"),
]


def required_columns(format: RowFormat) -> tuple[str, ...]:
    """Columns every training row must have: prompt, answer and `keep_columns`."""
    return tuple(dict.fromkeys((*format.prompt_columns, *format.answer_columns, *format.keep_columns)))


def conversation(row: Mapping[str, Any], format: RowFormat) -> Conversation:
    """Read a training row; raises `RowRefused` where a cell does not parse."""
    return Conversation(repaired(format.turns(row, answered=True), format.repair, answered=True), format.tools(row))


def prompt_messages(row: Mapping[str, Any], format: RowFormat) -> list[dict[str, Any]]:
    """Read a row to be answered: the conversation without its final assistant turn; the answer columns may be absent.

    Raises:
        RowRefused: a cell does not parse.
    """
    return repaired(format.turns(row, answered=False), format.repair, answered=False)


def prompt_tools(row: Mapping[str, Any], format: RowFormat) -> str | None:
    """JSON text of the tools a row offers, if any."""
    return format.tools(row)
