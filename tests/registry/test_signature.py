from typing import Any

import pytest
from pydantic import ValidationError

from llm_assets.registry.asking import InputSchemaUnfillable, Served
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.prompts import PromptVersion
from llm_assets.registry.signature import generation_defaults, mlflow_signature

GENERATION = {"temperature": 0.2, "max_new_tokens": 96, "top_p": 0.9, "stop": [";"], "seed": 1}
SQL = {"type": "text_to_sql", "system": "You write SQL."}
COLUMNS = {"sql_context": "string", "sql_prompt": "string"}


def test_by_default_a_text_is_completed():
    config = RegistryConfig()
    assert (config.task, config.input_columns) == ("llm/v1/completions", {"prompt": "string"})
    assert RegistryConfig(task="llm/v1/chat").input_columns == {"messages": "messages"}


def test_the_signature_carries_columns_and_generation_defaults_under_names_callers_know():
    signature = mlflow_signature(GENERATION, "llm/v1/completions", {"prompt": "string"}, None)
    params = {param.name: param.default for param in signature.params}
    assert params == {
        "temperature": 0.2,
        "top_p": 0.9,
        "max_tokens": 96,
        "seed": 1,
        "stop": [";"],
        "candidate_count": 1,
    }
    assert generation_defaults(signature) == GENERATION
    named = mlflow_signature(GENERATION, "llm/v1/completions", COLUMNS, {"sql": "string", "prompt_tokens": "long"})
    assert named.inputs.input_names() == list(COLUMNS) and named.outputs.input_names() == ["sql", "prompt_tokens"]


def test_a_schema_may_be_written_as_mlflow_writes_it():
    from mlflow.types import ColSpec, Schema

    schema = Schema([ColSpec("string", "sql_context"), ColSpec("string", "sql_prompt")])
    assert RegistryConfig.model_validate({"input_schema": schema}).input_columns == COLUMNS
    assert RegistryConfig.model_validate({"input_schema": schema.to_dict()}).input_columns == COLUMNS


@pytest.mark.parametrize(
    ("block", "says"),
    [
        ({"input_schema": {}}, "has no column"),
        ({"input_schema": {"prompt": "string", "context": "string"}}, "beside other columns"),
        ({"input_schema": {"prompt": "messages"}}, "'prompt' is wrong"),
        ({"input_schema": {"text": "tensor"}}, "Input should be 'string'"),
        ({"input_schema": [{"type": "string"}]}, "have no name or no type"),
        ({"output_schema": {"a": "string", "b": "string"}}, "one string column for the text"),
        ({"output_schema": {"prompt_tokens": "string", "text": "string"}}, "prompt_tokens: long"),
        ({"output_schema": {"finish_reason": "string"}}, "one string column for the text"),
        ({"task": "llm/v1/chat", "output_schema": {"text": "string"}}, "no effect on llm/v1/chat"),
        ({"task": "llm/v1/embeddings"}, "llm/v1/completions"),
    ],
)
def test_a_schema_nothing_can_fill_is_refused_with_what_to_write(block: dict[str, Any], says: str):
    with pytest.raises(ValidationError, match=says):
        RegistryConfig.model_validate(block)


def test_a_prompt_follows_the_system_message_of_training():
    assert Served(row_format=SQL).asked(()) == {"system": "You write SQL.", "template": None}
    assert Served(row_format={"type": "openai_messages", "system": "Be brief."}).asked(())["system"] == "Be brief."
    assert Served().asked(()) == {"system": None, "template": None}


def test_columns_fill_the_prompt_of_the_row_format():
    asked = Served(row_format=SQL, input_columns=COLUMNS).asked(())
    assert asked["template"] == [
        {"role": "system", "content": "You write SQL."},
        {"role": "user", "content": "{{sql_context}}\n\n{{sql_prompt}}"},
    ]


@pytest.mark.parametrize("columns", [("sql_context",), ("question",), ("sql_context", "sql_prompt", "dialect")])
def test_columns_the_prompt_does_not_take_are_refused_with_those_it_takes(columns: tuple[str, ...]):
    with pytest.raises(InputSchemaUnfillable, match=r"takes sql_context, sql_prompt\. Name exactly those"):
        Served(row_format=SQL, input_columns=dict.fromkeys(columns, "string")).asked(())


def test_rows_of_messages_are_not_asked_by_columns():
    with pytest.raises(InputSchemaUnfillable, match=r"takes messages\. Name exactly"):
        Served(row_format={"type": "openai_messages"}, input_columns={"question": "string"}).asked(())


def test_columns_fill_a_registered_prompt_and_its_version_is_pinned():
    chat = ({"role": "system", "content": "Be exact."}, {"role": "user", "content": "{{schema}}\n{{ question }}"})
    prompt = PromptVersion("ask", 3, "prompts:/ask/3", chat)
    row_format = {"type": "prompt_template", "template_uri": "prompts:/ask@production", "completion": "{sql}"}
    columns = {"schema": "string", "question": "string"}
    served = Served(row_format=row_format, input_columns=columns)
    assert served.asked([prompt])["template"][1] == {"role": "user", "content": "{{schema}}\n{{question}}"}
    assert Served(row_format=row_format).asked([prompt])["system"] == "Be exact."
    pinned = served.pinned_format([prompt])
    assert pinned is not None and pinned["template_uri"] == "prompts:/ask/3"
