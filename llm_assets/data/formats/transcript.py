r"""Rows whose conversation is one text with the speakers written into it, as older public files have it.

    ### Human: Hi### Assistant: Hello                     (Guanaco)
    \n\nHuman: Hi\n\nAssistant: Hello                      (Anthropic)
    USER: Hi\n\n\nASSISTANT: Hello <|endoftext|>          (Glaive, Vicuna)

Nothing tells a speaker's mark from the same words in what somebody says, so this format is never guessed: a lineage
declares it. A mark of letters counts only where a line begins.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator

from llm_assets.data.formats.row_format import RowFormat, cell, finished
from llm_assets.data.formats.turn_list import Speaker
from llm_assets.data.messages import RowRefused, message
from llm_assets.data.tool_calls import tagged_calls, tool_calls_text

STYLES: tuple[dict[str, Speaker], ...] = (
    {"### Human:": "user", "### Assistant:": "assistant", "### System:": "system"},
    {"### User:": "user", "### Assistant:": "assistant", "### System:": "system"},
    {"### Instruction:": "user", "### Response:": "assistant"},
    {"<|im_start|>user": "user", "<|im_start|>assistant": "assistant", "<|im_start|>system": "system"},
    {"<|user|>": "user", "<|assistant|>": "assistant", "<|system|>": "system"},
    {"<|prompter|>": "user", "<|assistant|>": "assistant", "<|system|>": "system"},
    {"[INST]": "user", "[/INST]": "assistant", "<<SYS>>": "system", "<</SYS>>": "user"},
    {"[Human]:": "user", "[MOSS]:": "assistant"},
    {"USER:": "user", "ASSISTANT:": "assistant", "SYSTEM:": "system", "FUNCTION RESPONSE:": "tool"},
    {"Human:": "user", "Assistant:": "assistant", "System:": "system"},
    {"User:": "user", "Assistant:": "assistant", "System:": "system"},
)
ENDS = ("<|endoftext|>", "<|im_end|>", "</s>", "<s>", "<eoh>", "<eoa>", "<|end|>")


class TranscriptFormat(RowFormat):
    """One text with the speakers written into it, such as `### Human: … ### Assistant: …`."""

    type: Literal["transcript"] = "transcript"
    text_column: str = Field(default="text", description="Column with the text.")
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")
    speakers: dict[str, Speaker] = Field(
        default={},
        description="What stands before each turn, and who speaks then: {'### Human:': user, '### Assistant:': "
        "assistant}. By default the usual marks, those with which the text begins.",
    )
    ends: tuple[str, ...] = Field(default=ENDS, description="What is taken off the start and the end of each turn.")

    @field_validator("speakers")
    @classmethod
    def _both_sides(cls, speakers: dict[str, Speaker]) -> dict[str, Speaker]:
        if speakers and not {"user", "assistant"} <= set(speakers.values()):
            raise ValueError(f"speakers {speakers} mark no conversation; name what stands before user and assistant")
        if "" in {mark.strip() for mark in speakers}:
            raise ValueError(f"speakers {speakers} have an empty mark; write what stands before the turn")
        return speakers

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.text_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The text, cut before each mark; what stands before the first is the system's."""
        text = cell(row, self.text_column)
        speakers = self.speakers or _style_of(text)
        pieces = _marks(tuple(speakers)).split(text)
        messages = []
        if before := self._bare(pieces[0]):
            messages.append(message("system", before))
        marked = zip(pieces[1::2], pieces[2::2], strict=True)
        said: list[tuple[Speaker, str]] = [(speakers[mark], self._bare(content)) for mark, content in marked]
        for n, (speaker, content) in enumerate(said):
            if not content and said[n + 1 : n + 2] and said[n + 1][0] == "system":
                continue  # [INST] <<SYS>>
            messages.append(_turn(speaker, content))
        if messages and not messages[-1]["content"] and messages[-1]["role"] == "user" and len(messages) > 1:
            messages.pop()  # a mark that waits for the next question
        return finished(messages, self._system(row), answered)

    def _system(self, row: Mapping[str, Any]) -> str | None:
        said = cell(row, self.system_column).strip()
        return said.removeprefix("SYSTEM:").strip() or self.system

    def _bare(self, text: str) -> str:
        text, before = text.strip(), None
        while text != before:
            before = text
            for end in self.ends:
                text = text.removeprefix(end).removesuffix(end).strip()
        return text


def _turn(speaker: Speaker, content: str) -> dict[str, Any]:
    if speaker == "function_call":
        return message("assistant", "", tool_calls_text(content))
    return message(speaker, *tagged_calls(content)) if speaker == "assistant" else message(speaker, content)


def _style_of(text: str) -> Mapping[str, Speaker]:
    """The usual marks that come first in the text, of those with which both sides speak, or the user alone."""
    found = []
    for style in STYLES:
        marks = list(_marks(tuple(style)).finditer(text))
        spoken = {style[mark[0]] for mark in marks}
        if {"user", "assistant"} <= spoken or spoken == {"user"}:
            found.append((marks[0].start(), style))
    if not found:
        raise RowRefused(
            "no_speakers",
            f"no usual mark of a user and an assistant in {text[:80]!r}; name them in the format's `speakers`",
        )
    return min(found, key=lambda one: one[0])[1]


@lru_cache(maxsize=64)
def _marks(marks: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the marks; one of letters only where a line begins."""
    longest = sorted(marks, key=len, reverse=True)
    return re.compile(
        "(" + "|".join((r"(?:(?<=\n)|\A)" if mark[0].isalpha() else "") + re.escape(mark) for mark in longest) + ")"
    )
