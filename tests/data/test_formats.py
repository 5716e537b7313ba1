"""Each shape of row becomes the conversation it means; what does not parse is refused with its place."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from llm_assets.data import FormatConfig
from llm_assets.data.formats import (
    AlpacaFormat,
    AutoFormat,
    FormatUnknown,
    OpenAIMessagesFormat,
    PromptCompletionFormat,
    ShareGPTFormat,
    TemplateFormat,
    TextToSQLFormat,
    conversation,
    detect_format,
    prompt_messages,
    prompt_tools,
    required_columns,
)
from llm_assets.data.messages import RowRefused, check_turns
from llm_assets.data.sql_text import statements, without_inserts

DDL = "CREATE TABLE t (id INT, name TEXT);"
SQL_ROW = {"sql_context": DDL + " INSERT INTO t VALUES (1, 'a;b');", "sql_prompt": "How many?", "sql": "SELECT 1"}


def said(messages: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


def test_text_to_sql_asks_with_the_schema_and_answers_with_sql():
    found = conversation(SQL_ROW, TextToSQLFormat(system="Write SQL."))
    assert said(found.messages) == [
        ("system", "Write SQL."),
        ("user", DDL + "\n\nHow many?"),
        ("assistant", "SELECT 1"),
    ]
    whole = conversation(SQL_ROW, TextToSQLFormat(ddl_only=False, prompt="{question} {schema}"))
    assert said(whole.messages)[0] == ("user", f"How many? {SQL_ROW['sql_context']}")


def test_inserts_are_told_from_the_schema_by_statement_not_by_word():
    script = "-- rows\nINSERT INTO t VALUES ('it''s; fine'); "
    script += "CREATE TABLE \"insert;\" (a TEXT DEFAULT 'x;'); insert into b select 1"
    assert without_inserts(script) == "CREATE TABLE \"insert;\" (a TEXT DEFAULT 'x;');"
    assert statements("a; b 'unclosed; c") == ["a;", "b 'unclosed;", "c"]
    assert statements("/* a; b */ SELECT 1 - 2 / 3; ;") == ["/* a; b */ SELECT 1 - 2 / 3;"]


def test_openai_messages_keep_tools_calls_and_results():
    row = {
        "messages": json.dumps(
            [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
                    ],
                },
                {"role": "tool", "content": "sunny", "tool_call_id": "c1", "name": "f"},
                {"role": "assistant", "content": "Sunny."},
            ]
        ),
        "tools": json.dumps([{"name": "f", "parameters": {}}]),
    }
    found = conversation(row, OpenAIMessagesFormat())
    assert said(found.messages)[:2] == [("system", "Be brief."), ("user", "Weather?")]
    assert json.loads(found.messages[2]["tool_calls"]) == [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert found.messages[3]["tool_call_id"] == "c1"
    assert json.loads(found.tools or "") == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    check_turns(found.messages)


def test_messages_with_images_are_refused():
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}
    with pytest.raises(RowRefused, match="not_text"):
        conversation(row, OpenAIMessagesFormat())


def test_sharegpt_tags_become_roles_and_calls():
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "tools": "[]",
    }
    found = conversation(row, ShareGPTFormat(system="Be brief."))
    assert [turn["role"] for turn in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.tools is None
    check_turns(found.messages)


def test_a_call_that_is_no_json_is_refused():
    row = {"conversations": [{"from": "function_call", "value": "f(1)"}]}
    with pytest.raises(RowRefused, match="bad_tool_call"):
        conversation(row, ShareGPTFormat())


def test_alpaca_joins_input_history_and_system():
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "history": '[["Hi", "Hello"]]', "system": "Count."}
    expected = [("system", "Count."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add.\n1 2"), ("assistant", "3")]
    assert said(conversation(row, AlpacaFormat()).messages) == expected
    assert said(conversation({"instruction": "Hi", "input": "", "output": "Yo"}, AlpacaFormat()).messages) == [
        ("user", "Hi"),
        ("assistant", "Yo"),
    ]


def test_prompt_and_completion_may_be_text_or_messages():
    assert said(conversation({"prompt": "a", "completion": "b"}, PromptCompletionFormat()).messages) == [
        ("user", "a"),
        ("assistant", "b"),
    ]
    row = {
        "prompt": '[{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]',
        "completion": '[{"role": "assistant", "content": "b"}]',
    }
    assert said(conversation(row, PromptCompletionFormat(system="other")).messages) == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
    ]


def test_a_template_writes_messages_over_any_columns():
    format = TemplateFormat(template="{a} {{}} {b}?", completion="{c}", system="Speak {b}.")
    assert required_columns(format) == ("a", "b", "c")
    row = {"a": "{b}", "b": 2, "c": "yes"}
    assert said(conversation(row, format).messages) == [
        ("system", "Speak 2."),
        ("user", "{b} {} 2?"),
        ("assistant", "yes"),
    ]


@pytest.mark.parametrize("prompt", ["{a.b}", "{a[0]}", "{}", "{a"])
def test_a_template_that_is_no_plain_column_is_refused(prompt: str):
    with pytest.raises(ValidationError):
        TemplateFormat(template=prompt, completion="{c}")


def test_text_to_sql_refuses_an_unknown_placeholder():
    with pytest.raises(ValidationError, match="schema"):
        TextToSQLFormat(prompt="{sql_context}")


ANSWERED = {
    "text_to_sql": (TextToSQLFormat(), SQL_ROW),
    "alpaca": (AlpacaFormat(), {"instruction": "Hi", "output": "Yo"}),
    "prompt_completion": (PromptCompletionFormat(), {"prompt": "a", "completion": "b"}),
    "template": (TemplateFormat(template="{a}", completion="{b}"), {"a": "1", "b": "2"}),
    "openai_messages": (
        OpenAIMessagesFormat(),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ),
    "sharegpt": (ShareGPTFormat(), {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_the_prompt_at_inference_is_the_training_conversation_without_its_answer(name: str):
    format, row = ANSWERED[name]
    asked = {column: value for column, value in row.items() if column not in format.answer_columns}
    assert prompt_messages(asked, format) == conversation(row, format).messages[:-1]
    assert prompt_tools(row, format) is None


def test_yaml_tells_formats_apart_by_type():
    adapter = TypeAdapter(FormatConfig)
    assert isinstance(adapter.validate_python({"type": "alpaca"}), AlpacaFormat)
    with pytest.raises(ValidationError, match="sharegpt"):
        adapter.validate_python({"type": "csv"})
    with pytest.raises(ValidationError):
        adapter.validate_python({"type": "alpaca", "prompt_column": "x"})


def test_a_format_is_detected_by_columns():
    assert detect_format(["sql_context", "sql_prompt", "sql", "id"]).type == "text_to_sql"
    assert detect_format(["messages"]).type == "openai_messages"
    assert detect_format(["conversations", "tools"]).type == "sharegpt"
    assert detect_format(["instruction", "output"]).type == "alpaca"
    assert detect_format(["prompt", "completion"]).type == "prompt_completion"
    with pytest.raises(FormatUnknown, match="type: prompt_template"):
        detect_format(["title", "body"])


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("", "no_turns"),
        ("assistant", "leading_assistant"),
        ("system assistant", "leading_assistant"),
        ("user", "unanswered"),
        ("user assistant user", "unanswered"),
        ("user user assistant", "same_role"),
        ("user assistant assistant", "same_role"),
        ("user assistant system user assistant", "late_system"),
        ("user tool assistant", "stray_tool_result"),
        ("user robot", "unknown_role"),
    ],
)
def test_turns_out_of_order_are_refused(roles: str, reason: str):
    with pytest.raises(RowRefused, match=reason):
        check_turns([{"role": role, "content": "x"} for role in roles.split()])


def test_an_empty_turn_is_refused():
    with pytest.raises(RowRefused, match="empty_turn: message 2"):
        check_turns([{"role": "user", "content": "x"}, {"role": "assistant", "content": " \n"}])


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("alpaca_en_demo.json", AlpacaFormat()),
        ("alpaca_en_demo.json", AutoFormat()),
        ("glaive_toolcall_en_demo.json", ShareGPTFormat()),
        ("glaive_toolcall_en_demo.json", AutoFormat()),
    ],
)
def test_every_real_row_reads_as_a_conversation(real_rows, name: str, format):
    rows = json.loads(real_rows(name).read_text())
    refused = []
    for n, row in enumerate(rows):
        try:
            check_turns(conversation(row, format).messages)
        except RowRefused as error:
            refused.append((n, str(error)))
    assert len(refused) <= len(rows) * 0.01, refused[:5]
