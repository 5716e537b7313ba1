"""A chat template is the Jinja file that turns messages into text; it is run here exactly as Hugging Face runs it.

One thing differs on purpose: the date is pinned, because a template that prints today's date would make other tokens
every day. Running it here takes neither PyTorch nor transformers, and the check `template_parity` compares the result
with theirs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_assets.core import LLMAssetsError
from llm_assets.data.messages import RowRefused

CHATML = Path(__file__).with_name("chatml.jinja")
FILE = "chat_template.jinja"
PINNED_DATE = datetime(2024, 7, 26)  # the date Llama 3.1's own template falls back to
DATE_STRING = PINNED_DATE.strftime("%d %b %Y")
TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TemplateMissing(LLMAssetsError):
    """A model directory has no chat template."""


class TemplateInvalid(LLMAssetsError):
    """A chat template is no Jinja template."""


def pinned_strftime(format: str) -> str:
    """`strftime_now` of every rendering: the pinned date."""
    return PINNED_DATE.strftime(format)


@dataclass(frozen=True)
class ChatTemplate:
    """A template's source and the special tokens it may name."""

    source: str
    special_tokens: Mapping[str, str]

    @classmethod
    def from_directory(cls, directory: Path) -> "ChatTemplate":
        """Read `chat_template.jinja`, or the template inside `tokenizer_config.json`.

        Raises:
            TemplateMissing: there is neither.
            TemplateInvalid: the template does not parse.
        """
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        inline = settings.get("chat_template")
        if isinstance(inline, list):  # named templates: the default one
            inline = {entry["name"]: entry["template"] for entry in inline}.get("default")
        source = (directory / FILE).read_text() if (directory / FILE).exists() else inline
        if not source:
            raise TemplateMissing(
                f"{directory} has no {FILE} and none in tokenizer_config.json: it is a base model without a chat "
                "format. Set tokenization.template to chatml or to a template file."
            )
        template = cls(source, special_tokens(settings))
        _ = template._compiled
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Text of messages as `for_template` gives them.

        Raises:
            RowRefused: `template_refused`, with the template's own words (a role it does not take, say).
        """
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                date_string=DATE_STRING,
                strftime_now=pinned_strftime,
                **self.special_tokens,
            )
        except TEMPLATE_FAULTS as error:
            raise RowRefused("template_refused", str(error) or type(error).__name__) from None

    @cached_property
    def _compiled(self) -> jinja2.Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateInvalid(f"Chat template, line {error.lineno}: {error.message}. Correct it.") from error


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens of a `tokenizer_config.json`, as text."""
    found = {name: settings.get(name) for name in SPECIAL_NAMES}
    return {n: v["content"] if isinstance(v, Mapping) else str(v) for n, v in found.items() if v is not None}


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` around what the assistant writes, which stays as it is."""

    tags: set[str] = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    @staticmethod
    def _written(caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
