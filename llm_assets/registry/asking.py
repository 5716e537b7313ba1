"""How a caller of a served version is understood: which system message precedes a prompt, which text columns fill.

It is worked out once, at registration, from the row format and the prompts the training rows were made with, so that a
served version asks its model what it was trained to be asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from llm_assets.core import LLMAssetsError
from llm_assets.data.formats import FormatConfig
from llm_assets.data.messages import RowRefused
from llm_assets.registry.prompts import PromptVersion, parse_prompt_uri
from llm_assets.registry.signature import MESSAGES, PROMPT, Task


class InputSchemaUnfillable(LLMAssetsError):
    """The input columns do not fill the prompt that the model was trained on."""


@dataclass(frozen=True)
class Served:
    """What the YAML says about a served version.

    Attributes:
        task: What it does.
        input_columns: Column to type.
        output_columns: Column to type; None gives the text alone.
        row_format: The `format` block of the training rows as JSON, for whoever asks from raw rows; None if unknown.
        base: Source of the base model, in words.
    """

    task: Task = "llm/v1/completions"
    input_columns: Mapping[str, str] = field(default_factory=lambda: {PROMPT: "string"})
    output_columns: Mapping[str, str] | None = None
    row_format: Mapping[str, Any] | None = None
    base: str = ""

    def asked(self, prompts: Sequence[PromptVersion]) -> dict[str, Any]:
        """What the pyfunc needs to build messages: `system` and `template`, either of which may be None.

        Raises:
            InputSchemaUnfillable: columns that the prompt has no place for, or places no column fills.
        """
        if set(self.input_columns) & {PROMPT, MESSAGES}:
            return {"system": self._system(prompts), "template": None}
        return {"system": None, "template": self._template(prompts)}

    def format(self, prompts: Sequence[PromptVersion]) -> Any:
        """The row format, with the prompt its URI was resolved to; None if unknown."""
        if self.row_format is None:
            return None
        format: Any = TypeAdapter(FormatConfig).validate_python(dict(self.row_format))
        uri = getattr(format, "template_uri", None)
        used = [prompt for prompt in prompts if uri and parse_prompt_uri(uri)[0] == prompt.name]
        return format.resolved(used[0].template) if used else format

    def pinned_format(self, prompts: Sequence[PromptVersion]) -> dict[str, Any] | None:
        """The row format as JSON, with the version instead of the alias of its prompt."""
        pinned = dict(self.row_format) if self.row_format else None
        if pinned and pinned.get("template_uri"):
            name = parse_prompt_uri(pinned["template_uri"])[0]
            pinned["template_uri"] = next((p.uri for p in prompts if p.name == name), pinned["template_uri"])
        return pinned

    def _system(self, prompts: Sequence[PromptVersion]) -> str | None:
        """The system message every training row had; None where rows brought their own or it holds columns."""
        format = self.format(prompts)
        if format is None:
            return None
        try:
            turns = format.turns({name: f"{{{{{name}}}}}" for name in format.prompt_columns}, answered=False)
        except (LLMAssetsError, RowRefused):  # rows of messages are not asked by columns
            return format.system
        texts = [turn["content"] for turn in turns if turn["role"] == "system"]
        return texts[0] if texts and "{{" not in texts[0] else None

    def _template(self, prompts: Sequence[PromptVersion]) -> list[dict[str, str]]:
        format, columns = self.format(prompts), ", ".join(self.input_columns)
        try:
            turns = format.turns({name: f"{{{{{name}}}}}" for name in self.input_columns}, answered=False)
        except (AttributeError, LLMAssetsError, RowRefused) as reason:
            raise InputSchemaUnfillable(
                f"registry.input_schema names {columns}, which rows of format {getattr(format, 'type', 'unknown')} are "
                f"not asked by ({reason}). Use {PROMPT}: string or {MESSAGES}: messages."
            ) from None
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        named = PromptVersion("", 0, "", tuple(messages)).variables
        if set(named) != set(self.input_columns) or not set(format.prompt_columns) <= set(named):
            needed = dict.fromkeys((*format.prompt_columns, *(name for name in named if name in self.input_columns)))
            raise InputSchemaUnfillable(
                f"registry.input_schema names {columns}, and the prompt of this lineage takes {', '.join(needed)}. "
                f"Name exactly those, or leave it out to be asked by {PROMPT}."
            )
        return messages
