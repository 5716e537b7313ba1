"""Which tokens end a turn of a chat template, and which no message may spell, told from what the template writes.

Whether a tokenizer calls a token special says little: some mark none of their markers so. A token ends a turn because
the template writes it after every answer, and belongs to the markup because the template writes it around a question.
The cost is a handful of renderings of short conversations per template.
"""

import re
from collections.abc import Iterable
from functools import cached_property

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import ChatTemplate
from llm_assets.data.messages import RowRefused

QUESTION, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "zq"}


class TemplateUnsupported(LLMAssetsError):
    """A chat template whose answers a model cannot learn to end."""


class TurnEnds:
    """The end-of-turn tokens and the control tokens of one template.

    Args:
        template: The template.
        added: Every added token of the tokenizer; only such a token can end a turn, and none that is white space.
        special: Those of them that the tokenizer calls special.
    """

    def __init__(self, template: ChatTemplate, added: Iterable[str], special: Iterable[str]):
        self.template, self._special = template, frozenset(special)
        self._added = any_of(token for token in added if token.strip())

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Tokens that end a turn: what the template writes after an answer, after a tool call, and the tokenizer's eos.

        Raises:
            TemplateUnsupported: the template refuses a question with its answer, or ends the answer with no token.
        """
        eos = self.template.special_tokens.get("eos_token")
        return tuple(dict.fromkeys(token for token in (self._after_answer[-1], self._after_call, eos) if token))

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Finds the end of a turn: all the tokens after an answer together, or one of `tokens`."""
        return any_of(["".join(self._after_answer), *self.tokens])

    @cached_property
    def control(self) -> frozenset[str]:
        """Tokens that no message may spell: special ones, those that end turns, and those around a question."""
        return self._markup | set(self.tokens)

    @cached_property
    def _markup(self) -> frozenset[str]:
        """Special tokens, and whatever added tokens a question is rendered with."""
        asked = self._rendered([{"role": "user", "content": "zq"}]) or ""
        return self._special | set(self._added.findall(asked.replace("zq", " ")))

    @cached_property
    def _answered(self) -> str:
        try:
            return self.template.render([QUESTION, ANSWER])
        except RowRefused as refused:
            raise TemplateUnsupported(
                f"The chat template refuses a question and its answer: {refused.detail}"
            ) from None

    @cached_property
    def _after_answer(self) -> tuple[str, ...]:
        """The tokens the template writes right after an answer, one for most; the last of them ends the turn."""
        after = self._answered[self._answered.rfind("zq") + 2 :]
        found = self._adjacent(after)
        if not found:
            raise TemplateUnsupported(
                f"The chat template ends an answer with {after!r}, in which no added token of the tokenizer occurs, so "
                "a model cannot learn to stop. Use template: chatml, or one that writes the model's end-of-turn token."
            )
        if len(found) == 1:
            return _texts(found)
        # only those that stand after every answer: others may end the text, or start a header
        own = len(after) - self._unasked_header(after)
        found = [one for one in found if one.start() < own] or found[:1]
        twice = self._rendered([QUESTION, ANSWER, QUESTION, ANSWER])
        common = _texts(self._adjacent(twice[twice.find("zq") + 2 :])) if twice else ()
        same = tuple(one for one, other in zip(_texts(found), common, strict=False) if one == other)
        return same or _texts(found[:1])

    @cached_property
    def _after_call(self) -> str | None:
        """The token a template writes after a tool call, if it is another than after an answer."""
        call = {"id": "callprobe", "type": "function", "function": {"name": "zqprobe", "arguments": {"a": "b"}}}
        schema = {"type": "object", "properties": {}}
        tool = {"type": "function", "function": {"name": "zqprobe", "description": "d", "parameters": schema}}
        calling = self._rendered([QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}], [tool])
        after = calling[calling.rfind("zqprobe") :] if calling else ""
        found = list(any_of(self._markup).finditer(after))
        if self._after_answer[-1] in _texts(found):
            return None
        own = len(after) - _common_ending(after, self._answered)  # what ends either text ends no call
        found = [one for one in found if one.start() < own]
        return found[-1][0] if found and not after[found[-1].end() : own].strip() else None

    def _unasked_header(self, after: str) -> int:
        """Length of what the template writes at the end of a question and of an answer, if it asks on its own for more.

        Some templates end every text with the next answer's header, whether a generation prompt is wanted or not.
        """
        asked, prompt = self._rendered([QUESTION]), self._rendered([QUESTION], prompt=True)
        return _common_ending(after, asked) if asked and asked == prompt else 0

    def _rendered(self, messages: list[dict], tools: list[dict] | None = None, prompt: bool = False) -> str | None:
        """The text; None where the template refuses it."""
        try:
            return self.template.render(messages, tools, add_generation_prompt=prompt)
        except RowRefused:
            return None

    def _adjacent(self, after: str) -> list[re.Match[str]]:
        """The first added token of a text, and those that follow it without a gap."""
        found = self._added.search(after)
        adjacent: list[re.Match[str]] = []
        while found:
            adjacent.append(found)
            found = self._added.match(after, found.end())
        return adjacent


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Longest first, as a tokenizer matches its added tokens; matches nothing when there are none."""
    listed = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) if listed else r"(?!)")


def _texts(found: Iterable[re.Match[str]]) -> tuple[str, ...]:
    return tuple(one[0] for one in found)


def _common_ending(one: str, other: str) -> int:
    size = min(len(one), len(other))
    return next((n for n in range(size) if one[-1 - n] != other[-1 - n]), size)
