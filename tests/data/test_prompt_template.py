"""A template is filled in once from named columns, whichever way its placeholders are written and wherever it is."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from dagster.components.resolved.context import ResolutionContext
from pydantic import TypeAdapter, ValidationError

from llm_assets.data import FormatConfig
from llm_assets.data.formats import (
    AlpacaFormat,
    TemplateColumnMissing,
    TemplateFormat,
    TemplateUnavailable,
    conversation,
    prompt_messages,
    required_columns,
    resolve_templates,
)

ROW = {"q": "What is {{x}} in {y}?", "lang": "SQL", "a": "42"}


@dataclass
class Prompt:
    template: object
    uri: str = "prompts:/ask/3"
    name: str = "ask"


def test_doubled_braces_are_placeholders_and_single_ones_then_literal():
    format = TemplateFormat(template='{{q}} Answer as {"lang": "{{ lang }}"}', completion="{{a}}")
    assert required_columns(format) == ("q", "lang", "a")
    asked = conversation(ROW, format).messages
    assert asked[0]["content"] == 'What is {{x}} in {y}? Answer as {"lang": "SQL"}'
    assert asked[1]["content"] == "42"


@pytest.mark.parametrize("template", ["{q} and {{lang}}", "{{q}} {% if lang %}x{% endif %}", "{q.upper}", "{"])
def test_a_template_that_could_be_read_in_two_ways_is_refused(template: str):
    with pytest.raises(ValidationError):
        TemplateFormat(template=template, completion="{a}")


@pytest.mark.parametrize(("template", "completion"), [("Ask ", "{a}"), ("{q}", "yes")])
def test_a_template_that_the_loader_emptied_or_that_names_no_column_is_refused(template: str, completion: str):
    with pytest.raises(ValidationError, match="names no column"):
        TemplateFormat(template=template, completion=completion)


def test_doubled_braces_survive_the_loader_of_a_yaml_file_in_a_raw_block():
    written = {"type": "prompt_template", "template": "{% raw %}{{q}}{% endraw %}", "completion": "{a}"}
    TypeAdapter(FormatConfig).validate_python(written)  # as the loader checks it first
    resolved = ResolutionContext.default().resolve_value(written)
    assert prompt_messages(ROW, TypeAdapter(FormatConfig).validate_python(resolved))[0]["content"] == ROW["q"]


def test_several_messages_may_be_templates():
    turns = [{"role": "system", "content": "Speak {lang}."}, {"role": "user", "content": "{q}"}]
    format = TypeAdapter(FormatConfig).validate_python(
        {"type": "prompt_template", "template": turns, "completion": "{a}"}
    )
    assert [t["content"] for t in prompt_messages(ROW, format)] == ["Speak SQL.", ROW["q"]]


def test_exactly_one_origin_of_the_template_is_given():
    with pytest.raises(ValidationError, match="has no template"):
        TemplateFormat(completion="{a}")
    with pytest.raises(ValidationError, match="template and template_file"):
        TemplateFormat(completion="{a}", template="{q}", template_file="x")
    with pytest.raises(ValidationError, match="template_uri"):
        TemplateFormat(completion="{a}", template_uri="models:/x")


def test_a_template_file_counts_as_configuration_by_its_content(tmp_path: Path):
    path = tmp_path / "ask.txt"
    path.write_text("In {lang}: {q}\n")
    format = TemplateFormat(template_file=str(path), completion="{a}").inlined()
    assert prompt_messages(ROW, format)[0]["content"] == f"In SQL: {ROW['q']}"
    assert TypeAdapter(FormatConfig).validate_python(format.model_dump()) == format  # it needs the file no more
    path.write_text("Please, {q}")
    assert TemplateFormat(template_file=str(path), completion="{a}").inlined() != format


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{q} {{lang}}"])
def test_a_template_file_that_is_missing_or_no_template_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "ask.txt"
    if content:
        path.write_bytes(content)
    with pytest.raises(TemplateUnavailable, match=r"ask\.txt"):
        TemplateFormat(template_file=str(path), completion="{a}").inlined()


def test_a_prompt_uri_is_resolved_once_for_all_sources_and_its_version_is_returned():
    asked: list[str] = []

    def load(uri: str) -> Prompt:
        asked.append(uri)
        return Prompt("{{q}}")

    format = TemplateFormat(template_uri="prompts:/ask@live", completion="{{a}}")
    formats = {"one": format, "two": format, "three": AlpacaFormat()}
    found, prompts = resolve_templates(formats, load, list(ROW))
    assert asked == ["prompts:/ask@live"]
    assert [prompt.uri for prompt in prompts] == ["prompts:/ask/3"]
    assert prompt_messages(ROW, found["two"])[0]["content"] == ROW["q"]
    assert found["three"] == AlpacaFormat()
    with pytest.raises(TemplateUnavailable, match="not loaded"):
        conversation(ROW, format)


def test_a_prompt_of_several_messages_is_taken_as_it_is():
    load = lambda _uri: Prompt(({"role": "system", "content": "{{lang}}"}, {"role": "user", "content": "{{q}}"}))  # noqa: E731
    found, _ = resolve_templates(
        {"": TemplateFormat(template_uri="prompts:/ask/1", completion="{{a}}")}, load, list(ROW)
    )
    assert [t["role"] for t in conversation(ROW, found[""]).messages] == ["system", "user", "assistant"]


def test_a_variable_without_a_column_is_refused_by_name():
    format = TemplateFormat(template_uri="prompts:/ask@live", completion="{{a}}")
    with pytest.raises(TemplateColumnMissing, match=r"prompts:/ask@live names tone, which.*q, lang, a"):
        resolve_templates({"": format}, lambda _uri: Prompt("{{q}} {{tone}}"), list(ROW))


def test_a_prompt_with_jinja_blocks_is_refused():
    format = TemplateFormat(template_uri="prompts:/ask@live", completion="{{a}}")
    with pytest.raises(TemplateUnavailable, match="Jinja block"):
        resolve_templates({"": format}, lambda _uri: Prompt("{% if q %}{{q}}{% endif %}"), list(ROW))
