r"""Where the assistant speaks in a rendered conversation, told from the rendering itself and never from its markup.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
                                                          ^^^^^^^^^^^^^^^      the turn the model has to write

A turn starts where the generation prompt ends, because that is what a server hands the model, and runs through its
end-of-turn token. The last turn is found by rendering the prompt. Earlier ones are found by rendering once more with
every message between invisible marks: where the template leaves the marks is where it put the words, whatever it trims
or moves, and if the text without marks is not the text, the row is refused. The cost is three renderings of a row
however many turns it has, and two where one turn is learned.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import CLOSE, OPEN, ChatTemplate
from llm_assets.data.messages import RowRefused

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
FIRST_MARK, MARKS, END_MARK = 0x100000, 0xFF00, chr(0x10FFFD)  # a private plane that no text uses
RESERVED = f"[{OPEN}{CLOSE}{chr(FIRST_MARK)}-{END_MARK}]"
_MARK = re.compile(f"[{chr(FIRST_MARK)}-{END_MARK}]")
LEARNED_HEADERS, LONGEST_HEADER = 10_000, 400


class TemplateUnsupported(LLMAssetsError):
    """A chat template whose answers a model cannot learn to end."""


@dataclass(frozen=True)
class Turns:
    """A rendered conversation.

    Attributes:
        text: What is tokenized.
        spans: Characters of each turn to learn, in order, end-of-turn token included.
        prompt_characters: Where the last answer starts, which is where its generation prompt ends.
    """

    text: str
    spans: tuple[Span, ...]
    prompt_characters: int


class TurnFinder:
    """Finds turns in the renderings of one template.

    Args:
        template: The template.
        added: Every added token of the tokenizer; only such a token can end a turn.
        special: Those of them that no message may spell.
    """

    def __init__(self, template: ChatTemplate, added: Iterable[str], special: Iterable[str]):
        self.template = template
        self._added, self._special = any_of(added), any_of(special)
        self._header_of: dict[tuple[str, bool], int] = {}

    @cached_property
    def end_tokens(self) -> tuple[str, ...]:
        """Tokens that end a turn: what the template writes after an answer, after a tool call, and the tokenizer's eos.

        Raises:
            TemplateUnsupported: the template refuses a question with its answer, or ends the answer with no token.
        """
        eos = self.template.special_tokens.get("eos_token")
        return tuple(dict.fromkeys(token for token in (self._answer_ends[-1], self._call_end, eos) if token))

    @cached_property
    def _answer_ends(self) -> tuple[str, ...]:
        """The tokens the template writes right after an answer, one for most; the last of them ends the turn."""
        asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": "zq"}
        try:
            once = self.template.render([asked, answered]).text
        except RowRefused as refused:
            raise TemplateUnsupported(
                f"The chat template refuses a question and its answer: {refused.detail}"
            ) from None
        after = once[once.rfind("zq") + 2 :]
        found = self._adjacent(after)
        if not found:
            raise TemplateUnsupported(
                f"The chat template ends an answer with {after!r}, in which no added token of the tokenizer occurs, so "
                "a model cannot learn to stop. Use template: chatml, or one that writes the model's end-of-turn token."
            )
        if len(found) > 1:  # only those that stand after every answer: others may end the text, or start a header
            try:
                twice = self.template.render([asked, answered, asked, answered]).text
            except RowRefused:
                return found[:1]
            common = self._adjacent(twice[twice.find("zq") + 2 :])
            found = tuple(one for one, other in zip(found, common, strict=False) if one == other) or found[:1]
        return found

    def _adjacent(self, after: str) -> tuple[str, ...]:
        """The first added token of a text, and those that follow it without a gap."""
        first = self._added.search(after)
        found: list[str] = []
        while first:
            found.append(first[0])
            first = self._added.match(after, first.end())
        return tuple(found)

    def find(self, messages: Messages, tools: Tools, learned: Sequence[int]) -> Turns:
        """Render a conversation that ends with the assistant and find the turns at the indices `learned`.

        Raises:
            RowRefused: `template_refused`, `template_not_prefix_preserving`, `template_rewrites_answer`,
                `template_ignores_tools` or `no_end_of_turn`.
        """
        text = self.template.render(messages, tools).text
        last = len(messages) - 1
        prompt_characters = self._prompt_length(text, messages[:last], tools)
        earlier = [n for n in learned if n != last]
        spans = self._earlier(text, messages, tools, earlier, prompt_characters) if earlier else []
        if learned and learned[-1] == last:
            spans.append(self._span(text, messages, last, prompt_characters, len(text)))
        for tool in tools or ():
            if tool.get("function", tool).get("name", "") not in text:
                raise RowRefused("template_ignores_tools", f"the definition of {tool} is not in the text")
        return Turns(text, tuple(spans), prompt_characters)

    def _earlier(
        self, text: str, messages: Messages, tools: Tools, learned: Sequence[int], prompt_characters: int
    ) -> list[Span]:
        said = self._said(text, messages, tools)
        places = sorted(said.values())
        starts, ends = [place[0] for place in places], [place[1] for place in places]
        last = len(messages) - 1
        if last in said:
            self._learn_header(text, said[last][0], prompt_characters, ends, bool(tools))
        spans = []
        for n in learned:
            if n not in said:
                words = (messages[n].get("content") or "").strip()
                reason = "template_rewrites_answer" if words else "template_ignores_tools"
                raise RowRefused(reason, f"message {n + 1} is not in the text as written")
            begin, end = said[n]
            start = self._start(text, messages, tools, n, begin, ends)
            following = bisect_left(starts, end)
            limit = starts[following] if following < len(starts) else len(text)
            if n + 1 not in said:  # it may have a token that ends turns: only what is written without it counts
                limit = min(limit, _common_length(text, self.template.render(messages[: n + 1], tools).text))
            spans.append(self._span(text, messages, n, start, limit))
        return spans

    def _said(self, text: str, messages: Messages, tools: Tools) -> dict[int, Span]:
        """Where each message's words are in the text, by message; those written twice, or changed, are left out."""
        marked = self.template.render([_between_marks(n, turn) for n, turn in enumerate(messages)], tools).text
        pieces = _MARK.split(marked)
        if "".join(pieces) != text:
            raise RowRefused(
                "template_rewrites_answer", "the template reads what the messages say and writes another text"
            )
        said: dict[int, Span] = {}
        seen: dict[int, int] = {}
        place, opened = 0, (-1, 0)
        for mark, piece in zip(_MARK.findall(marked), pieces[:-1], strict=True):
            place += len(piece)
            if mark != END_MARK:
                code = ord(mark) - FIRST_MARK
                seen[code] = seen.get(code, 0) + 1
                opened = (code + MARKS * (seen[code] - 1), place)
            elif opened[0] >= 0:
                said.setdefault(opened[0] if opened[0] < len(messages) else opened[0] % MARKS, (opened[1], place))
                opened = (-1, 0)
        once = len(messages) > MARKS  # marks come round again
        return {
            n: at for n, at in said.items() if once or seen[n] == 1 or not (messages[n].get("content") or "").strip()
        }

    def _start(self, text: str, messages: Messages, tools: Tools, n: int, said_at: int, ends: Sequence[int]) -> int:
        """Where turn `n` starts: after the header between it and the words before, whose length is learned once."""
        before = _last_before(ends, said_at)
        header = self._header_of.get((text[before:said_at], bool(tools)))
        if header is None:
            start = self._prompt_length(text, messages[:n], tools)
            self._learn_header(text, said_at, start, ends, bool(tools))
            return start
        return before + header

    def _learn_header(self, text: str, said_at: int, start: int, ends: Sequence[int], tools: bool) -> None:
        before = _last_before(ends, said_at)
        short = said_at - before <= LONGEST_HEADER  # a longer one holds a message's words, and would not come again
        if short and before <= start <= said_at and len(self._header_of) < LEARNED_HEADERS:
            self._header_of[text[before:said_at], tools] = start - before

    def _span(self, text: str, messages: Messages, n: int, start: int, limit: int) -> Span:
        """The turn that starts at `start` and ends with its first end-of-turn token, which comes before `limit`."""
        found = self._end.search(text, start, limit)
        if not found:
            raise RowRefused("no_end_of_turn", f"message {n + 1} is not followed by {' or '.join(self.end_tokens)}")
        content = (messages[n].get("content") or "").strip()
        place = text.rfind(content, start, found.start())
        if place < 0:
            raise RowRefused("template_rewrites_answer", f"message {n + 1} is not in the text as written")
        for call in messages[n].get("tool_calls") or ():
            if text.find(call["function"]["name"], start, found.start()) < 0:
                raise RowRefused("template_ignores_tools", f"message {n + 1}: the call is not in the text")
        if not messages[n].get("tool_calls"):
            first = self._special.search(text, place + len(content), found.end())
            if first and first.start() < found.start():
                raise RowRefused("no_end_of_turn", f"message {n + 1} is followed by {first[0]}, which ends no turn")
        return start, found.end()

    def _prompt_length(self, text: str, before: Messages, tools: Tools) -> int:
        prompt = self.template.render(before, tools, add_generation_prompt=True).text
        if not text.startswith(prompt):
            raise RowRefused(
                "template_not_prefix_preserving",
                f"the text after message {len(before)} differs from the generation prompt ending in {prompt[-40:]!r}",
            )
        return len(prompt)

    @cached_property
    def _call_end(self) -> str | None:
        """The token a template writes after a tool call, if it renders one; it may be another than after an answer."""
        call = {"id": "callprobe", "type": "function", "function": {"name": "zqprobe", "arguments": {"a": "b"}}}
        schema = {"type": "object", "properties": {}}
        tool = {"type": "function", "function": {"name": "zqprobe", "description": "d", "parameters": schema}}
        calling = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        try:
            text = self.template.render(calling, [tool]).text
        except RowRefused:
            return None
        after = text[text.rfind("zqprobe") :]
        found = self._special.findall(after)
        return found[-1] if found and after.rstrip().endswith(found[-1]) else None

    @cached_property
    def _end(self) -> re.Pattern[str]:
        return any_of(["".join(self._answer_ends), *self.end_tokens])


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Longest first, as a tokenizer matches its added tokens; matches nothing when there are none."""
    listed = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) if listed else r"(?!)")


def _between_marks(n: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose words, or whose first call's name where it has none, stand between marks."""
    content, calls = turn.get("content") or "", turn.get("tool_calls")
    words = content.strip()
    if words:
        before, after = content.split(words, 1)[0], content[content.find(words) + len(words) :]
        return {**turn, "content": before + _marked(n, words) + after}
    if calls:
        function = {**calls[0]["function"], "name": _marked(n, calls[0]["function"]["name"])}
        return {**turn, "tool_calls": [{**calls[0], "function": function}, *calls[1:]]}
    return dict(turn)


def _marked(n: int, words: str) -> str:
    return chr(FIRST_MARK + n % MARKS) + words + END_MARK


def _last_before(ends: Sequence[int], place: int) -> int:
    """Where the words before `place` end."""
    before = bisect_right(ends, place)
    return ends[before - 1] if before else 0


def _common_length(one: str, other: str) -> int:
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(n for n in range(size) if one[n] != other[n])
