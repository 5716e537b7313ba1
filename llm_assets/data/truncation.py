"""Rows longer than the limit: dropped, refused, or cut turn by turn from the oldest on, and counted either way.

Nothing is ever cut inside a message: a cut answer has no end-of-turn token, and a model trained on it does not stop.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.data.messages import RowRefused
from llm_assets.data.rendering import Conversation, Encoded, Renderer
from llm_assets.data.token_config import TokenizationConfig

TOO_LONG = "too_long"


class RowsTooLong(LLMAssetsError):
    """A row exceeds the length limit and `too_long` is refuse."""


@dataclass(frozen=True)
class Refused:
    """A row that is left out, and why."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Fitted:
    """A row within the limit.

    Attributes:
        encoded: Its tokens and spans.
        cut_messages: Messages left out at the start, after the system message.
    """

    encoded: Encoded
    cut_messages: int = 0


class Fitter:
    """Encodes conversations within a length limit.

    Args:
        renderer: Template and tokenizer.
        config: Limit, policy and supervision.
    """

    def __init__(self, renderer: Renderer, config: TokenizationConfig):
        self.renderer, self.config = renderer, config
        longest = max((len(token) for token in renderer.tokenizer.get_vocab()), default=1)
        self._hopeless_characters = 4 * config.max_length_tokens * longest  # 4: normalizers may join characters

    def fit_batch(self, conversations: Sequence[Conversation]) -> list[Fitted | Refused]:
        """Encode each `(messages, tools)`; the refused say why."""
        sizes = [_characters(messages, tools) for messages, tools in conversations]
        short = [c for c, size in zip(conversations, sizes, strict=True) if size <= self._hopeless_characters]
        encoded = iter(self.renderer.encode_batch(short, self.config.supervise))
        return [
            self._fit(conversation, next(encoded) if size <= self._hopeless_characters else size)
            for conversation, size in zip(conversations, sizes, strict=True)
        ]

    def _fit(self, conversation: Conversation, encoded: Encoded | RowRefused | int) -> Fitted | Refused:
        limit = self.config.max_length_tokens
        if isinstance(encoded, RowRefused):
            return Refused(encoded.reason, encoded.detail)
        if isinstance(encoded, Encoded) and len(encoded.input_ids) <= limit:
            return Fitted(encoded)
        size = f"{encoded} characters" if isinstance(encoded, int) else f"{len(encoded.input_ids)} tokens"
        if self.config.too_long == "cut_oldest_turns":
            cut = self._cut(conversation)
            if cut:
                return cut
            size += ", its last question and answer still too many"
        return Refused(TOO_LONG, f"{size}, at most {limit} tokens")

    def _cut(self, conversation: Conversation) -> Fitted | None:
        """The conversation from the earliest question on with which it fits; None where not even the last one does."""
        messages, tools = conversation
        system = 1 if messages[0]["role"] == "system" else 0
        questions = [n for n, turn in enumerate(messages) if turn["role"] == "user" and n > system]
        best: Fitted | None = None
        low, high = 0, len(questions)
        while low < high:
            middle = (low + high) // 2
            kept = [*messages[:system], *messages[questions[middle] :]]
            fitting = self._within(kept, tools)
            if fitting:
                best, high = Fitted(fitting, questions[middle] - system), middle
            else:
                low = middle + 1
        return best

    def _within(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> Encoded | None:
        if _characters(messages, tools) > self._hopeless_characters:
            return None
        (encoded,) = self.renderer.encode_batch([(messages, tools)], self.config.supervise)
        if isinstance(encoded, RowRefused) or len(encoded.input_ids) > self.config.max_length_tokens:
            return None
        return encoded


def without_cut(messages: Sequence[Mapping[str, Any]], cut_messages: int) -> list[Mapping[str, Any]]:
    """The messages that are left of a conversation after a cut."""
    system = 1 if messages and messages[0]["role"] == "system" else 0
    return [*messages[:system], *messages[system + cut_messages :]]


def refuse_too_long(row_id: str, split: str, refused: Refused) -> None:
    """End the run at a row that is too long.

    Raises:
        RowsTooLong: always; names the row and the ways out.
    """
    raise RowsTooLong(
        f"Row {row_id} of {split} has {refused.detail}. Raise tokenization.max_length_tokens, shorten the row, or set "
        "tokenization.too_long to drop or cut_oldest_turns."
    )


def _characters(messages: Sequence[Mapping[str, Any]], tools: Any) -> int:
    """What is left of the messages under any template: white space around them may be trimmed."""
    said = sum(len((turn.get("content") or "").strip()) for turn in messages)
    return said + (len(tools) if isinstance(tools, str) else len(json.dumps(tools)) if tools else 0)
