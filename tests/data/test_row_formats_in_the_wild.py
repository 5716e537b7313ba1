"""Rows as public datasets write them are told apart and read, or refused for a reason with a remedy."""

import json

import pytest

from llm_assets.data.formats import (
    AlpacaFormat,
    AutoFormat,
    FormatUnknown,
    OpenAIMessagesFormat,
    ShareGPTFormat,
    TextToSQLFormat,
    conversation,
    described,
    detect_format,
    prompt_messages,
    prompt_tools,
)
from llm_assets.data.messages import RowRefused, check_turns

ASKED_AND_ANSWERED = [("user", "Hi"), ("assistant", "Yo")]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
TAGGED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
IN_THE_WILD = {
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Yo"}, "alpaca"),
    "dolly": ({"instruction": "Hi", "context": "", "response": "Yo", "category": "x"}, "alpaca"),
    "ultrachat": ({"prompt": "Hi", "prompt_id": "7f", "messages": TURNS}, "openai_messages"),
    "messages as text": ({"messages": json.dumps(TURNS)}, "openai_messages"),
    "messages, content first": ({"messages": [{"content": t["content"], "role": t["role"]} for t in TURNS]}, "openai"),
    "openhermes": ({"conversations": TAGGED, "source": "x", "system_prompt": None}, "sharegpt"),
    "conversations with roles": ({"conversations": TURNS}, "openai_messages"),
    "messages with from": ({"messages": TAGGED}, "sharegpt"),
    "lmsys": ({"conversation_id": "1", "conversation": TURNS, "model": "x"}, "openai_messages"),
    "capybara": ({"conversation": [{"input": "Hi", "output": "Yo"}]}, "openai_messages"),
    "oasst threads": (
        {"conversations": [{"role": "prompter", "text": "Hi"}, {"role": "assistant", "text": "Yo"}]},
        "openai_messages",
    ),
    "prompt and response": ({"prompt": "Hi", "response": "Yo"}, "prompt_completion"),
    "question and answer": ({"question": "Hi", "answer": "Yo"}, "prompt_completion"),
    "Question and Answer": ({"Question": "Hi", "Answer": "Yo"}, "prompt_completion"),
    "metamath": ({"query": "Hi", "response": "Yo", "type": "x"}, "prompt_completion"),
    "orca": ({"id": "1", "system_prompt": "", "question": "Hi", "response": "Yo"}, "prompt_completion"),
    "flan": ({"inputs": "Hi", "targets": "Yo"}, "prompt_completion"),
    "input and output": ({"input": "Hi", "output": "Yo"}, "prompt_completion"),
    "rows beside other sources": ({"prompt": "Hi", "completion": "Yo", "messages": None, "text": None}, "prompt"),
}


def said(messages: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


@pytest.mark.parametrize("name", IN_THE_WILD)
def test_public_shapes_are_detected_and_read(name: str):
    row, type = IN_THE_WILD[name]
    found = conversation(row, AutoFormat())

    assert said(found.messages) == ASKED_AND_ANSWERED
    check_turns(found.messages)
    assert described(detect_format(list(row), row)).startswith(type)
    assert said(prompt_messages(row, AutoFormat())) == ASKED_AND_ANSWERED[:1]


def test_a_question_over_a_create_table_is_text_to_sql():
    ddl = "CREATE TABLE head (age INTEGER)"
    row = {"answer": "SELECT 1", "question": "How many?", "context": ddl}
    assert said(conversation(row, AutoFormat()).messages) == [
        ("user", f"{ddl}\n\nHow many?"),
        ("assistant", "SELECT 1"),
    ]
    prose = {**row, "context": "The head is the oldest."}
    assert said(conversation(prose, AutoFormat()).messages)[0] == ("user", "How many?\nThe head is the oldest.")
    spider = {"db_id": "x", "question": "How many?", "query": "SELECT 1"}
    assert said(conversation(spider, AutoFormat()).messages) == [("user", "How many?"), ("assistant", "SELECT 1")]
    assert detect_format(["sql_context", "sql_prompt", "sql"]) == TextToSQLFormat()


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ({"text": "### Human: Hi ### Assistant: Yo"}, "type: transcript, text_column: text"),
        ({"system": "SYSTEM: x", "chat": "USER: Hi\n\nASSISTANT: Yo"}, "type: transcript, text_column: chat"),
        ({"data": [{"instruction": "Hi", "output": "Yo"}]}, "write the list of rows as the file"),
        ({"prompt": "Hi", "chosen": TURNS, "rejected": TURNS}, "messages_column: chosen"),
        ({"message_id": "1", "parent_id": None, "text": "Hi", "role": "prompter"}, "threads: {keep: best}"),
        ({"title": "a", "body": "b"}, "type: prompt_template"),
    ],
)
def test_a_shape_that_is_no_conversation_is_refused_with_what_to_do(row: dict, remedy: str):
    with pytest.raises(FormatUnknown, match=remedy):
        detect_format(list(row), row)
    with pytest.raises(RowRefused, match="no_format"):
        conversation(row, AutoFormat())


def test_a_row_whose_answer_is_null_is_refused_for_that_and_not_for_its_format():
    row = {"instruction": "Hi", "input": None, "output": None, "prompt": None}
    with pytest.raises(RowRefused, match=r"empty_turn: message 2 \('assistant'\)"):
        check_turns(conversation(row, AutoFormat()).messages)


def test_system_messages_of_a_column_a_turn_and_the_configuration_do_not_add_up():
    turns = [{"role": "system", "content": "of the turn"}, *TURNS]
    format = AutoFormat(system="of the lineage")
    assert said(conversation({"messages": turns, "system": "of the column"}, format).messages)[0][1] == "of the turn"
    assert said(conversation({"messages": TURNS, "system": "of the column"}, format).messages)[0][1] == "of the column"
    assert said(conversation({"messages": TURNS, "system": None}, format).messages)[0][1] == "of the lineage"


TAGS = [
    ("human", "gpt"),
    ("user", "assistant"),
    ("USER", "bot"),
    ("human", "chatgpt"),
    ("human", "bing"),
    ("user", "model"),
]


@pytest.mark.parametrize(("asks", "answers"), TAGS)
def test_speakers_are_known_by_any_of_their_usual_names(asks: str, answers: str):
    row = {"conversations": [{"from": asks, "value": "Hi"}, {"from": answers, "value": "Yo"}]}
    assert said(conversation(row, ShareGPTFormat()).messages) == ASKED_AND_ANSWERED


def test_a_lineage_adds_its_own_speakers_to_the_known_ones():
    row = {"conversations": [{"from": "Kunde", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    assert said(conversation(row, ShareGPTFormat(tags={"Kunde": "user"})).messages) == ASKED_AND_ANSWERED
    with pytest.raises(RowRefused, match="unknown_role: message 1 is 'Kunde'"):
        check_turns(conversation(row, ShareGPTFormat()).messages)
    with pytest.raises(ValueError, match="tags"):
        ShareGPTFormat(tags={"Kunde": "buyer"})


def test_hermes_calls_in_tags_become_tool_calls_and_results():
    row = {
        "conversations": [
            {"from": "system", "value": "You may call <tools>[{'name': 'f'}]</tools>"},
            {"from": "human", "value": "Weather?"},
            {"from": "gpt", "value": "Let me see.\n<tool_call>\n{'name': 'f', 'arguments': {'x': 'a'}}\n</tool_call>"},
            {"from": "tool", "value": '<tool_response>\n{"sky": "blue"}\n</tool_response>'},
            {"from": "gpt", "value": "Blue."},
        ],
        "tools": '[{"name": "f"}]',
    }
    found = conversation(row, AutoFormat())
    call, result = found.messages[2], found.messages[3]
    assert call["content"] == "Let me see."
    assert json.loads(call["tool_calls"])[0]["function"] == {"name": "f", "arguments": {"x": "a"}}
    assert result["content"] == '{"sky": "blue"}'
    assert found.tools is None  # the system message lists them, and the template must not list them again
    check_turns(found.messages)


@pytest.mark.parametrize(
    "text", ["<tool_call>{'name': 'f'", "<tool_call>f(1)</tool_call>", "<tool_call>[]</tool_call>"]
)
def test_a_tagged_call_that_cannot_be_read_is_refused(text: str):
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": text}]}
    with pytest.raises(RowRefused, match="bad_tool_call"):
        conversation(row, ShareGPTFormat())


@pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
@pytest.mark.parametrize("tools", ['[{"name": "f"}]', [{"name": "f"}], ['{"name": "f"}']])
def test_arguments_and_tools_may_be_objects_or_their_json_text(arguments, tools):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    row = {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": {"sky": "blue"}, "tool_call_id": "c", "name": "f"},
            TURNS[1],
        ],
        "tools": tools,
    }
    found = conversation(row, OpenAIMessagesFormat())
    assert json.loads(found.messages[1]["tool_calls"])[0]["function"]["arguments"] == {"x": 1}
    assert found.messages[2]["content"] == '{"sky": "blue"}'
    assert json.loads(prompt_tools(row, OpenAIMessagesFormat()) or "") == [
        {"type": "function", "function": {"name": "f"}}
    ]
    check_turns(found.messages)


def test_arguments_that_are_no_object_and_older_function_calls_are_told_apart():
    def asked(call: dict) -> dict:
        return {"messages": [TURNS[0], {"role": "assistant", "content": "", **call}]}

    older = asked({"function_call": {"name": "f", "arguments": "{}"}})
    assert (
        json.loads(conversation(older, OpenAIMessagesFormat()).messages[1]["tool_calls"])[0]["function"]["name"] == "f"
    )
    with pytest.raises(RowRefused, match="arguments of f are no object"):
        conversation(asked({"function_call": {"name": "f", "arguments": "[1]"}}), OpenAIMessagesFormat())


@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"training": 0}])
def test_an_answer_marked_as_not_to_be_learned_keeps_the_mark(flag: dict):
    turns = [{**TURNS[0], **flag}, {**TURNS[1], **flag}, *TURNS]
    messages = conversation({"messages": turns}, AutoFormat()).messages
    assert [turn["train"] for turn in messages] == [None, False, None, None]


@pytest.mark.parametrize("flag", [{"weight": 1}, {"weight": None}, {"train": True}, {"loss": float("nan")}])
def test_an_answer_marked_as_to_be_learned_is_like_one_without_a_mark(flag: dict):
    row = {"messages": [TURNS[0], {**TURNS[1], **flag}]}
    assert conversation(row, OpenAIMessagesFormat()) == conversation({"messages": TURNS}, OpenAIMessagesFormat())


def test_what_would_change_an_answer_without_a_word_is_refused():
    with pytest.raises(RowRefused, match=r"partial_weight: turn 2 has weight 0\.5"):
        conversation({"messages": [TURNS[0], {**TURNS[1], "weight": 0.5}]}, OpenAIMessagesFormat())
    thinking = {"messages": [TURNS[0], {**TURNS[1], "reasoning_content": "Hm."}]}
    with pytest.raises(RowRefused, match="thoughts_apart: turn 2 has its thoughts in 'reasoning_content'"):
        conversation(thinking, OpenAIMessagesFormat())
    for format in (AutoFormat, OpenAIMessagesFormat):
        assert said(conversation(thinking, format(thoughts="leave_out")).messages) == ASKED_AND_ANSWERED
        thought = conversation(thinking, format(thoughts="think_tags")).messages
        assert said(thought)[1][1] == "<think>\nHm.\n</think>\n\nYo"
    learned, context = TURNS[1], {**TURNS[1], "train": False}
    apart = conversation({"messages": [TURNS[0], learned, context]}, OpenAIMessagesFormat(repair=("join_same_role",)))
    assert [turn["train"] for turn in apart.messages] == [None, None, False]


@pytest.mark.parametrize("column", ["data", "conversations", "messages"])
def test_texts_in_turn_are_a_conversation(column: str):
    row = {"id": "1", column: ["Hi", "Yo", "More", "No"]}
    found = conversation(row, AutoFormat())
    assert [turn["role"] for turn in found.messages] == ["user", "assistant"] * 2
    assert said(found.messages)[:2] == ASKED_AND_ANSWERED


@pytest.mark.parametrize(
    "answers", ['[{"name": "f", "arguments": {"x": 1}}]', [{"name": "f", "arguments": '{"x": 1}'}]]
)
def test_calls_that_are_the_answer_column_are_calls_where_the_row_offers_tools(answers):
    row = {"query": "Weather?", "answers": answers, "tools": '[{"name": "f"}]'}
    found = conversation(row, AutoFormat())
    assert json.loads(found.messages[1]["tool_calls"] or "")[0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert json.loads(found.tools or "")[0]["function"] == {"name": "f"}
    if isinstance(answers, str):
        assert conversation({**row, "tools": None}, AutoFormat()).messages[1]["content"] == answers


def test_earlier_exchanges_beside_a_question_are_not_lost():
    row = {"query": "More", "response": "No", "history": [["Hi", "Yo"]]}
    assert said(conversation(row, AutoFormat()).messages) == [
        *ASKED_AND_ANSWERED,
        ("user", "More"),
        ("assistant", "No"),
    ]
    assert said(conversation({**row, "history": None}, AutoFormat()).messages)[0] == ("user", "More")


def test_functions_of_older_files_are_tools():
    row = {"messages": TURNS, "functions": [{"name": "f"}]}
    assert "f" in (conversation(row, OpenAIMessagesFormat()).tools or "") and prompt_tools(row, AutoFormat())


def test_a_list_or_an_object_where_an_answer_should_be_is_refused_and_another_column_taken_first():
    with pytest.raises(RowRefused, match="not_text: column 'output' holds a list"):
        conversation({"instruction": "Hi", "output": ["Yo", "No"]}, AutoFormat())
    with pytest.raises(RowRefused, match="not_text: column 'answers' holds an object"):
        conversation({"question": "Hi", "context": "x", "answers": {"text": ["Yo"]}}, AutoFormat())
    spider = {"question": "Hi", "sql": {"select": []}, "query": "Yo"}
    assert said(conversation(spider, AutoFormat()).messages) == ASKED_AND_ANSWERED
    assert said(conversation({"question": "Hi", "output": [], "sql": "Yo"}, AutoFormat()).messages)[1][1] == "Yo"


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (None, "no_turns"),
        (float("nan"), "no_turns"),
        ("", "no_turns"),
        ("[]", "no_turns"),
        ("{}", "bad_turns"),
        ("[1]", "bad_turns"),
        ('[{"role"', "bad_turns"),
        ([{"role": "user", "content": float("nan")}], "empty_turn"),
        ([{"role": "user", "content": None}], "empty_turn"),
        ([{"content": "Hi"}], "unknown_role"),
        ([{"role": "user", "content": ["Hi"]}], "not_text"),
    ],
)
def test_nothing_where_turns_should_be_is_refused_with_a_reason(cell, reason: str):
    with pytest.raises(RowRefused) as refused:
        check_turns(conversation({"messages": cell}, OpenAIMessagesFormat()).messages)
    assert refused.value.reason == reason


def turns_of(roles: str) -> list[dict]:
    return [{"role": role, "content": f"{role}{n}"} for n, role in enumerate(roles.split())]


@pytest.mark.parametrize(
    ("repair", "before", "after"),
    [
        ("join_same_role", "user user assistant assistant", "user assistant"),
        ("join_same_role", "system system user assistant", "system user assistant"),
        ("cut_unasked_start", "system assistant user assistant", "system user assistant"),
        ("cut_unanswered_end", "user assistant user", "user assistant"),
        ("cut_unanswered_end", "user assistant tool user", "user assistant"),
    ],
)
def test_a_turn_order_is_mended_only_where_the_lineage_says_so(repair: str, before: str, after: str):
    row = {"messages": turns_of(before)}
    with pytest.raises(RowRefused):
        check_turns(conversation(row, OpenAIMessagesFormat()).messages)
    for format in (OpenAIMessagesFormat(repair=(repair,)), AutoFormat(repair=(repair,))):
        messages = conversation(row, format).messages
        check_turns(messages)
        assert [turn["role"] for turn in messages] == after.split()


def test_joined_turns_keep_every_word_and_every_call():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, call, call]}
    asked, calling = conversation(row, OpenAIMessagesFormat(repair=("join_same_role",))).messages
    assert asked["content"] == "a\n\nb"
    assert len(json.loads(calling["tool_calls"])) == 2


def test_a_conversation_of_a_hundred_thousand_turns_is_read():
    row = {"messages": json.dumps(turns_of("user assistant " * 50_000))}
    messages = conversation(row, AutoFormat()).messages
    check_turns(messages)
    assert len(messages) == 100_000


def test_columns_are_remapped_by_the_format():
    format = AlpacaFormat(instruction_column="task", input_column="about", output_column="done")
    row = {"task": "Hi", "about": "x", "done": "Yo"}
    assert said(conversation(row, format).messages) == [("user", "Hi\nx"), ("assistant", "Yo")]
    turns = [{"who": "me", "what": "Hi"}, {"who": "it", "what": "Yo"}]
    format = OpenAIMessagesFormat(
        messages_column="talk", role_key="who", content_key="what", tags={"me": "user", "it": "assistant"}
    )
    assert said(conversation({"talk": turns}, format).messages) == ASKED_AND_ANSWERED
