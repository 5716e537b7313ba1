r"""A conversation becomes token ids, and labels on exactly what the model has to write itself.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
                                                          ^^^^^^^^^^^^^^^      labels = ids here, -100 elsewhere

A supervised turn starts where the generation prompt ends and runs through its end-of-turn token: these are the tokens a
server hands the model at inference, and those it then waits for. Where the two cannot be told apart token by token, the
row is refused with a reason that is counted, never labelled by guess. The cost is one more rendering per turn.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import CLOSE, OPEN, ChatTemplate, Rendering
from llm_assets.data.messages import RowRefused, for_template, tools_for_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
Supervise = Literal["all_turns", "last_turn"]
Span = tuple[int, int]


class TokenizerMissing(LLMAssetsError):
    """A directory holds no `tokenizer.json`."""


class TemplateUnsupported(LLMAssetsError):
    """A chat template whose answers a model cannot learn to end."""


@dataclass(frozen=True)
class Encoded:
    """One conversation as a model trains on it.

    Attributes:
        input_ids: Token ids.
        labels: The id where the model is to write that token itself, else -100; not shifted.
        prompt_tokens: Tokens before the last assistant turn, which are those of the generation prompt.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_tokens: int

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.labels) - self.labels.count(IGNORED)


class Renderer:
    """Chat template and tokenizer of one model directory."""

    def __init__(self, template: ChatTemplate, tokenizer: "Tokenizer"):
        self.template, self.tokenizer = template, tokenizer
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

    @cached_property
    def end_of_turn_tokens(self) -> tuple[str, ...]:
        """Tokens that end an assistant turn: the one the template writes after an answer, then the tokenizer's eos."""
        asked = [{"role": "user", "content": "a"}]
        answer = "zq"
        try:
            full = self.template.render([*asked, {"role": "assistant", "content": answer}]).text
        except RowRefused as refused:
            raise TemplateUnsupported(
                f"The chat template refuses a question and its answer: {refused.detail}"
            ) from None
        after = full[full.rfind(answer) + len(answer) :]
        found = self._added.search(after)
        if not found:
            raise TemplateUnsupported(
                f"The chat template ends an answer with {after!r}, in which no added token of the tokenizer occurs, so "
                "a model cannot learn to stop. Use template: chatml, or one that writes the model's end-of-turn token."
            )
        eos = self.template.special_tokens.get("eos_token")
        return tuple(dict.fromkeys([found[0], *([eos] if eos else [])]))

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids of `end_of_turn_tokens`; the first is the template's own."""
        ids = (self.tokenizer.token_to_id(token) for token in self.end_of_turn_tokens)
        return tuple(id for id in ids if id is not None)

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, supervise: Supervise = "all_turns"
    ) -> Encoded:
        """Encode one conversation that ends with the assistant.

        Args:
            messages: As in a chat dataset or plain OpenAI messages.
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
        self, conversations: Sequence[tuple[Sequence[Mapping[str, Any]], Any]], supervise: Supervise = "all_turns"
    ) -> list[Encoded | RowRefused]:
        """Encode `(messages, tools)` pairs, several times faster than one by one; refused rows come back as such.

        Reasons: `template_refused` (the template raised), `template_not_prefix_preserving` (the training text does not
        start with the generation prompt's), `template_rewrites_answer` (an answer is not in the text as it is in the
        row), `template_ignores_tools`, `no_end_of_turn`, `special_token_in_text` (a message spells a control token),
        `tokens_merge` (a token spans the end of the prompt).
        """
        rendered = [self._try_spans(messages, tools, supervise) for messages, tools in conversations]
        texts = [r[0] for r in rendered if not isinstance(r, RowRefused)]
        encodings = iter(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        return [r if isinstance(r, RowRefused) else self._label(r[0], r[1], next(encodings).ids) for r in rendered]

    def encode_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        """Token ids of a conversation up to where the assistant is to write.

        Raises:
            RowRefused: `template_refused` or `special_token_in_text`.
        """
        listed, listed_tools = for_template(messages), tools_for_template(tools)
        self._refuse_special_tokens(listed)
        return self._ids(self.template.render(listed, listed_tools, add_generation_prompt=True).text)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Text of token ids; special tokens are spelled out unless skipped."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _try_spans(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, supervise: Supervise
    ) -> tuple[str, list[Span]] | RowRefused:
        try:
            return self._spans(for_template(messages), tools_for_template(tools), supervise)
        except RowRefused as refused:
            return refused

    def _spans(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, supervise: Supervise
    ) -> tuple[str, list[Span]]:
        """Rendered text and the character span of each supervised turn, the last turn's last."""
        self._refuse_special_tokens(messages)
        turns = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
        if not turns or turns[-1] != len(messages) - 1:
            raise RowRefused("bad_roles", "the last message is not the assistant's")
        full = self.template.render(messages, tools)
        last_start = self._turn_start(full.text, messages[:-1], tools)
        if supervise == "last_turn" or len(turns) == 1:
            starts, turns = [last_start], turns[-1:]
        elif self.template.marks_generation and len(full.generated) == len(turns):
            starts = [*self._marked_starts(full), last_start]
        else:
            starts = [*(self._turn_start(full.text, messages[:n], tools) for n in turns[:-1]), last_start]
        spans = [(start, self._turn_end(full.text, start)) for start in starts]
        for span, following in zip(spans, [*starts[1:], len(full.text)], strict=True):
            if span[1] > following:
                raise RowRefused("no_end_of_turn", f"the turn at character {span[0]} runs into the next one")
        for (start, end), n in zip(spans, turns, strict=True):
            _refuse_lost_answer(messages[n], n + 1, full.text[start:end])
        _refuse_lost_tools(tools or (), full.text)
        return full.text, spans

    def _turn_start(self, text: str, before: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:
        prompt = self.template.render(before, tools, add_generation_prompt=True).text
        if not text.startswith(prompt):
            raise RowRefused(
                "template_not_prefix_preserving",
                f"the text after message {len(before)} differs from the generation prompt ending in {prompt[-40:]!r}",
            )
        return len(prompt)

    def _marked_starts(self, full: Rendering) -> Iterator[int]:
        """Where the template's own blocks start, moved past what the generation prompt already holds."""
        for marked, _ in full.generated[:-1]:
            start = marked
            for size in range(len(self._header), 0, -1):
                head, tail = self._header[:-size], self._header[-size:]
                if full.text.startswith(tail, marked) and full.text.endswith(head, 0, marked) and head:
                    start += size
                    break
            yield start

    @cached_property
    def _header(self) -> str:
        """What the generation prompt adds to the messages; may be empty."""
        asked = [{"role": "user", "content": "a"}]
        plain = self.template.render(asked).text
        prompted = self.template.render(asked, add_generation_prompt=True).text
        return prompted[len(plain) :] if prompted.startswith(plain) else ""

    def _turn_end(self, text: str, start: int) -> int:
        found = self._end_of_turn.search(text, start)
        if not found:
            raise RowRefused("no_end_of_turn", f"no {' or '.join(self.end_of_turn_tokens)} after character {start}")
        return found.end()

    def _label(self, text: str, spans: list[Span], ids: list[int]) -> Encoded | RowRefused:
        added_at = [n for n, id in enumerate(ids) if id in self._added_ids]
        matches = [(found.start(), found.end()) for found in self._added.finditer(text)]
        labels = [IGNORED] * len(ids)
        first = 0
        try:
            for start, end in spans:
                first, last = (self._tokens_before(text, place, ids, matches, added_at) for place in (start, end))
                labels[first:last] = ids[first:last]
        except RowRefused as refused:
            return refused
        return Encoded(ids, labels, prompt_tokens=first)

    def _tokens_before(self, text: str, place: int, ids: list[int], matches: list[Span], added_at: list[int]) -> int:
        """How many of `ids` encode `text[:place]`, verified: that text alone must encode to just those ids.

        Added tokens are cut out of the text before anything else, so only what follows the last of them is encoded
        again; should ids and text not agree on where those are, the whole prefix is.
        """
        known = bisect_left(matches, (place, 0))
        if len(matches) == len(added_at) and known and matches[known - 1][1] <= place:
            tail, first = text[matches[known - 1][0] : place], added_at[known - 1]
        else:
            tail, first = text[:place], 0
        expected = self._tail_ids(tail)
        if ids[first : first + len(expected)] != expected:
            raise RowRefused("tokens_merge", f"a token spans the border after {tail[-30:]!r}")
        return first + len(expected)

    def _tail_ids(self, tail: str) -> list[int]:
        if len(tail) > 64:
            return self._ids(tail)
        if tail not in self._verified_tails:
            if len(self._verified_tails) > 10_000:
                self._verified_tails.clear()
            self._verified_tails[tail] = self._ids(tail)
        return self._verified_tails[tail]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids  # the template writes its own bos

    def _refuse_special_tokens(self, messages: list[dict[str, Any]]) -> None:
        for number, turn in enumerate(messages, start=1):
            content = turn.get("content") or ""
            if self._control.search(content):
                token = self._control.findall(content)[0]
                raise RowRefused("special_token_in_text", f"message {number} spells the control token {token!r}")

    @cached_property
    def _added(self) -> re.Pattern[str]:
        return _any_of(token.content for token in self.tokenizer.get_added_tokens_decoder().values())

    @cached_property
    def _added_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.get_added_tokens_decoder())

    @cached_property
    def _control(self) -> re.Pattern[str]:
        added = self.tokenizer.get_added_tokens_decoder().values()
        return _any_of([OPEN, CLOSE, *(token.content for token in added if token.special)])

    @cached_property
    def _end_of_turn(self) -> re.Pattern[str]:
        return _any_of(self.end_of_turn_tokens)


def _refuse_lost_answer(turn: Mapping[str, Any], number: int, text: str) -> None:
    if (turn.get("content") or "").strip() not in text:
        raise RowRefused("template_rewrites_answer", f"message {number} is not in the text as written")
    for call in turn.get("tool_calls", ()):
        if call["function"]["name"] not in text:
            raise RowRefused("template_ignores_tools", f"message {number}: the call is not in the text")


def _refuse_lost_tools(tools: Sequence[Mapping[str, Any]], text: str) -> None:
    for tool in tools:
        if tool.get("function", tool).get("name", "") not in text:
            raise RowRefused("template_ignores_tools", f"the definition of {tool} is not in the text")


def _any_of(texts: Any) -> re.Pattern[str]:
    """Longest first, as the tokenizer matches its added tokens; matches nothing when there are none."""
    listed = sorted(set(texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) if listed else r"(?!)")
