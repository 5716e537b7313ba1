"""A conversation becomes token ids, and labels on exactly what the model has to write itself.

`turns` says which characters that is; here they become tokens of the one rendering that is trained on. Where a token
spans the border of a turn the row is refused with a reason that is counted, never labelled by guess.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import ChatTemplate
from llm_assets.data.messages import RowRefused, for_template, tools_for_template
from llm_assets.data.supervision import Supervise, learned_turns, without_flags
from llm_assets.data.turn_ends import ANSWER, QUESTION, TemplateUnsupported, TurnEnds, any_of
from llm_assets.data.turns import Span, TurnFinder, Turns
from llm_assets.data.words import WordEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["IGNORED", "Conversation", "Encoded", "Renderer", "Supervise", "TemplateUnsupported", "TokenizerMissing"]

IGNORED = -100
SAID = ("content", "tool_calls", "name", "tool_call_id")  # what a message may bring into the text
Conversation = tuple[Sequence[Mapping[str, Any]], Any]


class TokenizerMissing(LLMAssetsError):
    """A directory holds no `tokenizer.json`."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as a model trains on it.

    Attributes:
        input_ids: Token ids.
        spans: Tokens that carry loss, as `(first, after last)` of each learned turn, in order.
        prompt_tokens: Tokens before the last assistant turn, which are those of the generation prompt.
        characters: Length of the rendered text.
    """

    input_ids: list[int]
    spans: tuple[Span, ...]
    prompt_tokens: int
    characters: int = 0

    @property
    def labels(self) -> list[int]:
        """The id where the model is to write that token itself, else -100; not shifted."""
        labels = [IGNORED] * len(self.input_ids)
        for first, last in self.spans:
            labels[first:last] = self.input_ids[first:last]
        return labels

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(last - first for first, last in self.spans)


class Renderer:
    """Chat template and tokenizer of one model directory."""

    def __init__(self, template: ChatTemplate, tokenizer: "Tokenizer"):
        self.template, self.tokenizer = template, tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self._added = any_of(token.content for token in added.values())
        special = [token.content for token in added.values() if token.special]
        self._ends = TurnEnds(template, (token.content for token in added.values()), special)
        self._turns = TurnFinder(template, self._ends)
        self._words = WordEncoder(tokenizer)
        self._verified_tails: dict[str, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> "Renderer":
        """Read a directory's `tokenizer.json`, `tokenizer_config.json` and chat template.

        Raises:
            TokenizerMissing: no `tokenizer.json` (slow tokenizers have none).
            TemplateMissing: no chat template.
            TemplateUnsupported: the template ends an answer with no token of its own.
        """
        from tokenizers import Tokenizer

        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (directory / name).exists():
                raise TokenizerMissing(
                    f"{directory} has no {name}. Save the tokenizer as a fast one: "
                    "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
                )
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.no_truncation()  # both may be stored in the file
        tokenizer.no_padding()
        renderer = cls(ChatTemplate.from_directory(directory), tokenizer)
        _ = renderer.end_of_turn_tokens
        return renderer

    @property
    def end_of_turn_tokens(self) -> tuple[str, ...]:
        """Tokens that end an assistant turn: those the template writes after an answer or a call, then the eos."""
        return self._ends.tokens

    @cached_property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids of `end_of_turn_tokens`; the first is the template's own."""
        ids = (self.tokenizer.token_to_id(token) for token in self.end_of_turn_tokens)
        return tuple(id for id in ids if id is not None)

    @cached_property
    def answer_frame(self) -> tuple[str, str]:
        """What the template itself writes in a turn before and after the answer, such as empty thoughts; or nothing."""
        try:
            turns = self._turns.find([QUESTION, ANSWER], None, [1])
        except RowRefused:  # as where the prompt opens a thought that this answer has none of
            return "", ""
        ((start, end),) = turns.spans
        before, _, after = turns.text[start:end].partition("zq")
        return before, after[: after.rfind(self.end_of_turn_tokens[0])]

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, supervise: Supervise = "all_turns"
    ) -> Encoded:
        """Encode one conversation that ends with the assistant.

        Args:
            messages: As in a chat dataset or plain OpenAI messages. An assistant message with `train: false` or
                `weight: 0` carries no loss.
            tools: JSON text or list of tool definitions.
            supervise: Whether every assistant turn carries loss, or the last one alone.

        Raises:
            RowRefused: the labels cannot be exact; see `encode_batch` for the reasons.
        """
        (encoded,) = self.encode_batch([(messages, tools)], supervise)
        if isinstance(encoded, RowRefused):
            raise encoded
        return encoded

    def encode_batch(
        self, conversations: Sequence[Conversation], supervise: Supervise = "all_turns"
    ) -> list[Encoded | RowRefused]:
        """Encode `(messages, tools)` pairs; refused rows come back as such.

        Reasons: `template_refused` (the template raised), `template_not_prefix_preserving` (the training text does not
        start with the generation prompt's), `template_rewrites_answer` (an answer is not in the text as it is in the
        row), `template_ignores_tools`, `bad_tools` (a tool has no name), `no_end_of_turn`, `special_token_in_text` (a
        message spells a control token), `private_characters` (both private planes are used, so no marks are left),
        `tokens_merge` (a token spans the border of a turn), `nothing_to_learn` (no turn is to carry loss).
        """
        rendered = [self._try_turns(messages, tools, supervise) for messages, tools in conversations]
        encoded = iter(self._words.encode_batch([turns.text for turns in rendered if isinstance(turns, Turns)]))
        return [turns if isinstance(turns, RowRefused) else self._label(turns, next(encoded)) for turns in rendered]

    def encode_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        """Token ids of a conversation up to where the assistant is to write.

        Raises:
            RowRefused: `template_refused` or `special_token_in_text`.
        """
        self._refuse_special_tokens(messages, tools)
        listed, listed_tools = without_flags(for_template(messages)), tools_for_template(tools)
        return self._words.encode(self.template.render(listed, listed_tools, add_generation_prompt=True))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; special tokens are spelled out unless skipped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _try_turns(self, messages: Sequence[Mapping[str, Any]], tools: Any, supervise: Supervise) -> Turns | RowRefused:
        try:
            learned = learned_turns(messages, supervise)
            self._refuse_special_tokens(messages, tools)
            return self._turns.find(without_flags(for_template(messages)), tools_for_template(tools), learned)
        except RowRefused as refused:
            return refused

    def _label(self, turns: Turns, ids: list[int]) -> Encoded | RowRefused:
        text = turns.text
        added_at = [n for n, id in enumerate(ids) if id in self._added_ids]
        matches = [found.span() for found in self._added.finditer(text)]
        try:
            places = [place for span in turns.spans for place in span]
            tokens = [self._tokens_before(text, place, ids, matches, added_at) for place in places]
            last_starts = turns.spans[-1][0] == turns.prompt_characters
            prompt = (
                tokens[-2]
                if last_starts
                else self._tokens_before(text, turns.prompt_characters, ids, matches, added_at)
            )
        except RowRefused as refused:
            return refused
        return Encoded(ids, tuple(zip(tokens[::2], tokens[1::2], strict=True)), prompt, len(text))

    def _tokens_before(self, text: str, place: int, ids: list[int], matches: list[Span], added_at: list[int]) -> int:
        """How many of `ids` encode `text[:place]`, verified: that text alone must encode to just those ids.

        Added tokens are cut out of the text before anything else, so only what follows the last of them is encoded
        again; should ids and text not agree on where those are, the whole prefix is.
        """
        known = bisect_left(matches, (place, 0))
        if len(matches) == len(added_at) and known and matches[known - 1][1] <= place:
            if matches[known - 1][1] == place:  # nothing lies between
                return added_at[known - 1] + 1
            tail, first = text[matches[known - 1][0] : place], added_at[known - 1]
        else:
            tail, first = text[:place], 0
        expected = self._tail_ids(tail)
        if ids[first : first + len(expected)] != expected:
            raise RowRefused("tokens_merge", f"a token spans the border after {tail[-30:]!r}")
        return first + len(expected)

    def _tail_ids(self, tail: str) -> list[int]:
        if len(tail) > 64:
            return self._words.encode(tail)
        if tail not in self._verified_tails:
            if len(self._verified_tails) > 10_000:
                self._verified_tails.clear()
            self._verified_tails[tail] = self._words.encode(tail)
        return self._verified_tails[tail]

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return any_of(self._ends.control)

    def _refuse_special_tokens(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> None:
        for number, turn in enumerate(messages, start=1):
            for said in map(turn.get, SAID):
                found = self._control.search(_spelled(said)) if said else None
                if found:
                    raise RowRefused("special_token_in_text", f"message {number} spells the control token {found[0]!r}")
        found = self._control.search(_spelled(tools)) if tools else None
        if found:
            raise RowRefused("special_token_in_text", f"the tools spell the control token {found[0]!r}")


def _spelled(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)
