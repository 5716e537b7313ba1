"""Which messages of a conversation carry loss: the assistant's, unless the row says of one that it is context."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llm_assets.data.messages import RowRefused

FLAGS = ("train", "weight")
Supervise = Literal["all_turns", "last_turn"]


def learned_turns(messages: Sequence[Mapping[str, Any]], supervise: Supervise) -> list[int]:
    """Indices of the messages that carry loss.

    Raises:
        RowRefused: `unanswered` or `nothing_to_learn`.
    """
    if not messages or messages[-1]["role"] != "assistant":
        raise RowRefused("unanswered", "the last message is not the assistant's")
    turns = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    learned = [n for n in (turns[-1:] if supervise == "last_turn" else turns) if _carries_loss(messages[n])]
    if not learned:
        raise RowRefused("nothing_to_learn", "no assistant message is to carry loss; see their train or weight flags")
    return learned


def without_flags(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the template sees them, without what says how they are trained on."""
    return [{name: value for name, value in turn.items() if name not in FLAGS} for turn in messages]


def _carries_loss(turn: Mapping[str, Any]) -> bool:
    return all(turn.get(flag) not in (False, 0) for flag in FLAGS)
