"""What every row format has in common: a system message, columns that travel along, and repairs of the turn order.

A repair is off unless named, because each one changes what was said; a row that needs one is refused and counted.
"""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field

from llm_assets.core import Config
from llm_assets.data.messages import RowRefused, message

Repair = Literal["join_same_role", "cut_unasked_start", "cut_unanswered_end"]


class RowFormat(Config):
    """How a source row reads as a conversation; one subclass per shape that datasets come in."""

    system: str | None = Field(
        default=None, description="System message of every conversation that brings none of its own."
    )
    keep_columns: tuple[str, ...] = Field(
        default=(), description="Source columns that travel with the conversation as `extras`, for evaluation."
    )
    repair: tuple[Repair, ...] = Field(
        default=(),
        description="Turn orders to mend instead of refusing the row: join_same_role (consecutive turns of one role "
        "become one), cut_unasked_start (assistant turns before the first user turn), cut_unanswered_end (what "
        "follows the last assistant turn).",
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

    def inlined(self) -> Self:
        """The format with whatever it reads from files put in, so that their content counts as configuration."""
        return self


def repaired(messages: list[dict[str, Any]], repairs: tuple[Repair, ...], answered: bool) -> list[dict[str, Any]]:
    """The messages with the named repairs made, in the order in which `Repair` lists them.

    join_same_role       user user assistant -> user assistant
    cut_unasked_start    system assistant user assistant -> system user assistant
    cut_unanswered_end   user assistant user -> user assistant
    """
    if "join_same_role" in repairs:
        messages = _joined(messages)
    if "cut_unasked_start" in repairs:
        first = next((at for at, turn in enumerate(messages) if turn["role"] == "user"), len(messages))
        messages = [turn for turn in messages[:first] if turn["role"] == "system"] + messages[first:]
    if "cut_unanswered_end" in repairs and answered:
        last = max((at for at, turn in enumerate(messages) if turn["role"] == "assistant"), default=-1)
        messages = messages[: last + 1]
    return messages


def _joined(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for turn in messages:
        same = joined and all(turn[name] == joined[-1][name] for name in ("role", "train"))
        if same and turn["role"] != "tool":
            joined[-1] = _one_turn(joined[-1], turn)
        else:
            joined.append(turn)
    return joined


def _one_turn(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    content = "\n\n".join(filter(None, (first["content"], second["content"])))
    calls = [call for turn in (first, second) for call in json.loads(turn["tool_calls"] or "[]")]
    return {**first, "content": content, "tool_calls": json.dumps(calls, ensure_ascii=False) if calls else None}


def exchange(system: str | None, asked: str, answer: str | None) -> list[dict[str, Any]]:
    """System message if any, the question, and the answer if any."""
    messages = [message("system", system)] if system else []
    messages.append(message("user", asked))
    return messages if answer is None else [*messages, message("assistant", answer)]


def finished(messages: list[dict[str, Any]], system: str | None, answered: bool) -> list[dict[str, Any]]:
    """The messages led by a system message; unanswered, without the assistant turns at their end."""
    if system and (not messages or messages[0]["role"] != "system"):
        messages = [message("system", system), *messages]
    while not answered and messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return messages


def cell(row: Mapping[str, Any], column: str) -> str:
    """A column as text; null and NaN are empty, as is a column the row lacks.

    Raises:
        RowRefused: `not_text`, where a list or an object stands: which part of it is said is not for us to guess.
    """
    value = row.get(column)
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise RowRefused("not_text", f"column '{column}' holds {kind}, no text: {str(value)[:120]}")
    return plain_text(value)


def plain_text(value: Any) -> str:
    """A scalar as text; null and NaN are empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def list_cell(row: Mapping[str, Any], column: str) -> list[Any]:
    """A column that holds a list, as it is or as JSON text; empty when there is nothing in it.

    Raises:
        RowRefused: `bad_turns`, with what stands there in place of a list.
    """
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise RowRefused("bad_turns", f"column '{column}' is not JSON: {error}") from None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if not isinstance(value, list):
        raise RowRefused("bad_turns", f"column '{column}' is no list: {str(value)[:120]}")
    return value
