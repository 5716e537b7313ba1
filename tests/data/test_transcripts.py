"""Conversations written as one text are cut at the speakers' marks, and at nothing that only looks like one."""

import json

import pytest
from pydantic import ValidationError

from llm_assets.data.formats import TranscriptFormat, conversation, prompt_messages
from llm_assets.data.messages import RowRefused, check_turns

TEXTS = {
    "guanaco": "### Human: Hi### Assistant: Yo",
    "hh": "\n\nHuman: Hi\n\nAssistant: Yo",
    "glaive": "USER: Hi\n\n\nASSISTANT: Yo <|endoftext|>",
    "llama 2": "<s>[INST] Hi [/INST] Yo </s>",
    "zephyr": "<|user|>\nHi</s>\n<|assistant|>\nYo</s>",
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n",
    "moss": "[Human]: Hi<eoh> [MOSS]: Yo<eoa>",
}


def said(messages: list[dict]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in messages]


@pytest.mark.parametrize("name", TEXTS)
def test_public_transcripts_are_conversations(name: str):
    row = {"text": TEXTS[name]}
    found = conversation(row, TranscriptFormat())
    assert said(found.messages) == [("user", "Hi"), ("assistant", "Yo")]
    assert said(prompt_messages(row, TranscriptFormat())) == [("user", "Hi")]


def test_a_mark_of_letters_counts_only_where_a_line_begins():
    text = "\n\nHuman: What did the Human: say?\n\nAssistant: Ask Assistant: again\n\nHuman: Why\n\nAssistant: So"
    assert [words for _, words in said(conversation({"text": text}, TranscriptFormat()).messages)] == [
        "What did the Human: say?",
        "Ask Assistant: again",
        "Why",
        "So",
    ]


def test_what_stands_before_the_first_mark_or_in_a_column_is_the_systems():
    row = {"text": "A chat.\nUSER: Hi\nASSISTANT: Yo</s>\nUSER:"}
    assert said(conversation(row, TranscriptFormat()).messages)[0] == ("system", "A chat.")
    assert len(conversation(row, TranscriptFormat()).messages) == 3
    llama = {"text": "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Yo"}
    assert said(conversation(llama, TranscriptFormat()).messages) == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Yo"),
    ]


def test_calls_of_glaive_and_their_results_are_told_from_what_is_said():
    call = """ASSISTANT: <functioncall> {"name": "rate", "arguments": '{"from": "USD"}'} <|endoftext|>"""
    text = f'USER: Rate?\n\n\n{call}\n\n\nFUNCTION RESPONSE: {{"rate": 0.8}}\n\n\nASSISTANT: It is 0.8 <|endoftext|>'
    row = {"system": "SYSTEM: You have functions.", "chat": text}
    found = conversation(row, TranscriptFormat(text_column="chat"))
    check_turns(found.messages)
    assert [turn["role"] for turn in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[0]["content"] == "You have functions."
    calls = json.loads(found.messages[2]["tool_calls"] or "")
    assert calls[0]["function"] == {"name": "rate", "arguments": {"from": "USD"}}


def test_marks_of_its_own_and_texts_without_any():
    format = TranscriptFormat(speakers={"Q>": "user", "A>": "assistant"})
    assert said(conversation({"text": "Q> Hi\nA> Yo"}, format).messages) == [("user", "Hi"), ("assistant", "Yo")]
    with pytest.raises(RowRefused, match="no_speakers"):
        conversation({"text": "Once upon a time"}, TranscriptFormat())
    with pytest.raises(RowRefused, match="no_speakers"):
        conversation({"text": None}, TranscriptFormat())
    with pytest.raises(ValidationError, match="user and assistant"):
        TranscriptFormat(speakers={"Q>": "user"})
    with pytest.raises(ValidationError, match="empty mark"):
        TranscriptFormat(speakers={" ": "user", "A>": "assistant"})
