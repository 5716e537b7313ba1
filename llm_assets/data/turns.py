r"""Where the assistant speaks in a rendered conversation, told from the rendering itself and never from its markup.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
                                                          ^^^^^^^^^^^^^^^      the turn the model has to write

A turn starts where the generation prompt ends, because that is what a server hands the model, and runs through its
end-of-turn token. The last turn is found by rendering the prompt. Earlier ones are found by rendering once more with
every message between invisible marks: where the template leaves the marks is where it put the words, whatever it trims
or moves, and if the text without marks is not the text, the row is refused. The cost is three renderings of a row
however many turns it has, two where one turn is learned, and one more where tools are given.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_assets.data.chat_template import ChatTemplate
from llm_assets.data.messages import RowRefused
from llm_assets.data.tool_calls import tool_name
from llm_assets.data.turn_ends import TurnEnds, any_of

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
PLANES, MARKS = (0x100000, 0xF0000), 0xFF00  # private planes; the marks of a row are of one that its text does not use
LONGEST_HEADER, LONGEST_OPENING = 400, 64


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
    """Finds turns in the renderings of one template; a row is judged by itself, whatever was rendered before.

    Args:
        template: The template.
        ends: Its end-of-turn tokens.
    """

    def __init__(self, template: ChatTemplate, ends: TurnEnds):
        self.template, self.ends = template, ends

    def find(self, messages: Messages, tools: Tools, learned: Sequence[int]) -> Turns:
        """Render a conversation that ends with the assistant and find the turns at the indices `learned`.

        Raises:
            RowRefused: `template_refused`, `template_not_prefix_preserving`, `template_rewrites_answer`,
                `template_ignores_tools`, `bad_tools`, `private_characters` or `no_end_of_turn`.
        """
        text = self.template.render(messages, tools)
        last = len(messages) - 1
        prompt_characters = self._prompt_length(text, messages[:last], tools)
        earlier = [n for n in learned if n != last]
        spans = self._earlier(text, messages, tools, earlier, prompt_characters) if earlier else []
        if learned and learned[-1] == last:
            spans.append(self._span(text, messages, last, prompt_characters, len(text)))
        if tools:
            self._refuse_ignored(text, messages, tools)
        return Turns(text, tuple(spans), prompt_characters)

    def _refuse_ignored(self, text: str, messages: Messages, tools: Sequence[Mapping[str, Any]]) -> None:
        """Refuse tools that the template leaves out: a name must stand in the text more often than without them."""
        names = [tool_name(tool) for tool in tools]
        try:
            without = self.template.render(messages)
        except RowRefused:  # it takes this conversation with tools alone
            without = ""
        for name in names:
            if text.count(name) <= without.count(name):
                raise RowRefused("template_ignores_tools", f"the definition of {name} is not in the text")

    def _earlier(
        self, text: str, messages: Messages, tools: Tools, learned: Sequence[int], prompt_characters: int
    ) -> list[Span]:
        said = self._said(text, messages, tools)
        places = sorted(said.values())
        starts, ends = [place[0] for place in places], [place[1] for place in places]
        headers = _Headers(text, ends)
        last = len(messages) - 1
        if last in said:
            headers.learn(said[last][0], prompt_characters)
        spans = []
        for n in learned:
            if n not in said:
                words = (messages[n].get("content") or "").strip()
                reason = "template_rewrites_answer" if words else "template_ignores_tools"
                raise RowRefused(reason, f"message {n + 1} is not in the text as written")
            begin, end = said[n]
            start = headers.start(begin)
            if start is None:
                start = self._prompt_length(text, messages[:n], tools)
                headers.learn(begin, start)
            following = bisect_left(starts, end)
            limit = starts[following] if following < len(starts) else len(text)
            if n + 1 not in said:  # it may have a token that ends turns: only what is written without it counts
                limit = min(limit, _common_length(text, self.template.render(messages[: n + 1], tools)))
            spans.append(self._span(text, messages, n, start, limit))
        return spans

    def _said(self, text: str, messages: Messages, tools: Tools) -> dict[int, Span]:
        """Where each message's words are in the text, by message; those written twice, or changed, are left out."""
        marks = _marks_absent_from(text)
        marked = self.template.render([marks.around(n, turn) for n, turn in enumerate(messages)], tools)
        pieces = marks.pattern.split(marked)
        if "".join(pieces) != text:
            raise RowRefused(
                "template_rewrites_answer", "the template reads what the messages say and writes another text"
            )
        said: dict[int, Span] = {}
        seen: dict[int, int] = {}
        place, opened = 0, (-1, 0)
        for mark, piece in zip(marks.pattern.findall(marked), pieces[:-1], strict=True):
            place += len(piece)
            if mark != marks.end:
                code = ord(mark) - marks.plane
                seen[code] = seen.get(code, 0) + 1
                opened = (code + MARKS * (seen[code] - 1), place)
            elif opened[0] >= 0:
                said.setdefault(opened[0] if opened[0] < len(messages) else opened[0] % MARKS, (opened[1], place))
                opened = (-1, 0)
        once = len(messages) > MARKS  # marks come round again
        return {
            n: at for n, at in said.items() if once or seen[n] == 1 or not (messages[n].get("content") or "").strip()
        }

    def _span(self, text: str, messages: Messages, n: int, start: int, limit: int) -> Span:
        """The turn that starts at `start` and ends with its first end-of-turn token, which comes before `limit`."""
        found = self.ends.pattern.search(text, start, limit)
        if not found:
            raise RowRefused("no_end_of_turn", f"message {n + 1} is not followed by {' or '.join(self.ends.tokens)}")
        content = (messages[n].get("content") or "").strip()
        # the generation prompt may open what the answer starts with, such as <think>, so it may start before the turn
        place = text.rfind(content, max(0, start - LONGEST_OPENING), found.start())
        if place < 0 or (content and place + len(content) <= start):
            raise RowRefused("template_rewrites_answer", f"message {n + 1} is not in the text as written")
        for call in messages[n].get("tool_calls") or ():
            if text.find(call["function"]["name"], start, found.start()) < 0:
                raise RowRefused("template_ignores_tools", f"message {n + 1}: the call is not in the text")
        if not messages[n].get("tool_calls"):
            first = self._control.search(text, place + len(content), found.end())
            if first and first.start() < found.start():
                raise RowRefused("no_end_of_turn", f"message {n + 1} is followed by {first[0]}, which ends no turn")
        return start, found.end()

    def _prompt_length(self, text: str, before: Messages, tools: Tools) -> int:
        prompt = self.template.render(before, tools, add_generation_prompt=True)
        if not text.startswith(prompt):
            raise RowRefused(
                "template_not_prefix_preserving",
                f"the text after message {len(before)} differs from the generation prompt ending in {prompt[-40:]!r}",
            )
        return len(prompt)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return any_of(self.ends.control)


class _Headers:
    """Lengths of the headers between one row's messages, by what stands there, each learned once.

    Args:
        text: The row's text.
        ends: Where messages end in it.
    """

    def __init__(self, text: str, ends: Sequence[int]):
        self._text, self._ends = text, ends
        self._length_of: dict[str, int] = {}

    def start(self, said_at: int) -> int | None:
        """Where the turn whose words are at `said_at` starts: after its header; None where that is not known yet."""
        before = _last_before(self._ends, said_at)
        length = self._length_of.get(self._text[before:said_at])
        return None if length is None else before + length

    def learn(self, said_at: int, start: int) -> None:
        """Keep the length of the header between the words before `said_at` and `start`."""
        before = _last_before(self._ends, said_at)
        short = said_at - before <= LONGEST_HEADER  # a longer one holds a message's words, and would not come again
        if short and before <= start <= said_at:
            self._length_of[self._text[before:said_at]] = start - before


@dataclass(frozen=True)
class _Marks:
    """Characters of one private plane: one that opens each message, and one that closes any."""

    plane: int

    @property
    def end(self) -> str:
        return chr(self.plane + 0xFFFD)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(f"[{chr(self.plane)}-{self.end}]")

    def around(self, n: int, turn: Mapping[str, Any]) -> dict[str, Any]:
        """A message whose words, or whose first call's name where it has none, stand between marks."""
        content, calls = turn.get("content") or "", turn.get("tool_calls")
        words = content.strip()
        opening = chr(self.plane + n % MARKS)
        if words:
            before, after = content.split(words, 1)[0], content[content.find(words) + len(words) :]
            return {**turn, "content": before + opening + words + self.end + after}
        if calls:
            function = {**calls[0]["function"], "name": opening + calls[0]["function"]["name"] + self.end}
            return {**turn, "tool_calls": [{**calls[0], "function": function}, *calls[1:]]}
        return dict(turn)


_MARKS = tuple(map(_Marks, PLANES))


def _marks_absent_from(text: str) -> _Marks:
    if text.isascii():
        return _MARKS[0]
    free = next((marks for marks in _MARKS if not marks.pattern.search(text)), None)
    if free is None:
        raise RowRefused("private_characters", "the text uses both private planes of Unicode, so turns cannot be told")
    return free


def _last_before(ends: Sequence[int], place: int) -> int:
    """Where the words before `place` end."""
    before = bisect_right(ends, place)
    return ends[before - 1] if before else 0


def _common_length(one: str, other: str) -> int:
    size = min(len(one), len(other))
    if one[:size] == other[:size]:
        return size
    return next(n for n in range(size) if one[n] != other[n])
