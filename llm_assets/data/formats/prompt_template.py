"""Messages written over any columns by a template: inline, from a file, or a version in MLflow's Prompt Registry.

The library never calls the registry: whoever runs it passes a function that loads a URI, so a template is resolved
once per run and its version can be recorded. The cost is that a URI's columns are known only then.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.formats.placeholders import filled, placeholder_columns
from llm_assets.data.formats.row_format import RowFormat, finished, plain_text
from llm_assets.data.messages import message


class TemplateUnavailable(LLMAssetsError):
    """A template file cannot be read, or a prompt URI was never resolved."""


class TemplateColumnMissing(LLMAssetsError):
    """A template names a column that the rows do not have."""


class TemplateTurn(Config):
    """One message of a template that has several."""

    role: Literal["system", "user", "assistant"] = Field(description="Who says it.")
    content: str = Field(description="What is said, with placeholders.")


class TemplateFormat(RowFormat):
    """Messages written over any columns: `template: "Translate to French: {english}"`, `completion: "{french}"`."""

    type: Literal["prompt_template"] = "prompt_template"
    template: str | tuple[TemplateTurn, ...] | None = Field(
        default=None,
        description="User message, or a list of {role, content}, with {column} placeholders; or {{column}}, where "
        "single braces are literal.",
    )
    template_file: str | None = Field(default=None, description="UTF-8 file with the user message, likewise.")
    template_uri: str | None = Field(
        default=None,
        pattern=r"^prompts:/[^/\s]+",
        description="Prompt in MLflow's registry: prompts:/name@alias or prompts:/name/version.",
    )
    completion: str = Field(description="Assistant message, likewise.")
    system: str | None = Field(default=None, description="System message, likewise.")

    @field_validator("completion", "system", "template")
    @classmethod
    def _one_style(
        cls, template: str | tuple[TemplateTurn, ...] | None, info: ValidationInfo
    ) -> str | tuple[TemplateTurn, ...] | None:
        named = [name for text in _texts(template) for name in placeholder_columns(text)]
        if template is not None and not named and info.field_name != "system":
            raise ValueError(
                f"{info.field_name} {template!r} names no column, so every row would be the same. Write {{column}}; in "
                "YAML {{column}} is filled in by the loader, unless it stands in {% raw %}…{% endraw %}."
            )
        return template

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [n for n in ("template", "template_file", "template_uri") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(
                f"prompt_template has {' and '.join(given) or 'no template'}; "
                "give one of template, template_file, template_uri"
            )
        return self

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked; those of a prompt URI are known once it is resolved."""
        texts = [*_texts(self.template), *_texts(self.system)]
        return tuple(dict.fromkeys(name for text in texts for name in placeholder_columns(text)))

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return placeholder_columns(self.completion)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The templates, filled in."""
        if self.template is None:
            raise TemplateUnavailable(f"{self.template_file or self.template_uri} is not loaded; see resolve_templates")
        values = {name: _text(row.get(name)) for name in (*self.prompt_columns, *self.answer_columns)}
        if isinstance(self.template, str):
            messages = [message("user", filled(self.template, values))]
        else:
            messages = [message(turn.role, filled(turn.content, values)) for turn in self.template]
        if answered:
            messages.append(message("assistant", filled(self.completion, values)))
        return finished(messages, filled(self.system, values) if self.system else None, answered=True)

    def inlined(self) -> Self:
        """The format with its template file read.

        Raises:
            TemplateUnavailable: the file does not exist or is not UTF-8.
        """
        if self.template_file is None or self.template is not None:
            return self
        try:
            text = Path(self.template_file).expanduser().read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TemplateUnavailable(
                f"template_file {self.template_file}: {error}. Correct the path, or save the file as UTF-8."
            ) from error
        return self.model_copy(update={"template": self._checked(text), "template_file": None})

    def resolved(self, template: Any) -> Self:
        """The format with what the registry returned for its URI: a text, or a list of `{role, content}`."""
        return self.model_copy(update={"template": self._checked(template)})

    def _checked(self, template: Any) -> str | tuple[TemplateTurn, ...] | None:
        fields = {**self.model_dump(exclude={"template", "template_file", "template_uri"}), "template": template}
        try:
            return type(self).model_validate(fields).template
        except ValueError as error:
            raise TemplateUnavailable(f"{self.template_file or self.template_uri} is no template: {error}") from error


def resolve_templates(
    formats: Mapping[str, Any], load_prompt: Callable[[str], Any], columns: Sequence[str]
) -> tuple[dict[str, Any], list[Any]]:
    """Load every template file and prompt URI once.

    Args:
        formats: Any formats by name; those that are no template pass through.
        load_prompt: Returns the prompt, with its `template`, that a URI stands for.
        columns: Columns of the rows.

    Returns:
        The formats, and each prompt that was loaded.

    Raises:
        TemplateUnavailable: a file or prompt is no template.
        TemplateColumnMissing: a template names a column the rows do not have.
    """
    found: dict[str, Any] = {}
    prompts: dict[str, Any] = {}
    for name, configured in formats.items():
        format = configured.inlined()
        if isinstance(format, TemplateFormat):
            uri = format.template_uri
            if uri and format.template is None:
                prompts[uri] = prompts.get(uri) or load_prompt(uri)
            found[name] = format.resolved(prompts[uri].template) if uri in prompts else format
            _refuse_missing(found[name], columns)
        else:
            found[name] = format
    return found, list(prompts.values())


def _refuse_missing(format: TemplateFormat, columns: Sequence[str]) -> None:
    if missing := [name for name in format.prompt_columns if name not in columns]:
        raise TemplateColumnMissing(
            f"The template {format.template_uri or format.template_file or ''} names {', '.join(missing)}, which the "
            f"rows do not have. They have: {', '.join(columns)}. Rename in the template, or use the source's `rename`."
        )


def _text(value: Any) -> str:
    """A cell as text; a template that names a list or an object means its JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else plain_text(value)


def _texts(template: str | tuple[TemplateTurn, ...] | None) -> list[str]:
    if template is None:
        return []
    return [template] if isinstance(template, str) else [turn.content for turn in template]
