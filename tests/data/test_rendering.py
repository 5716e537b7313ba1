"""What single conversations become: tool calls, thoughts, dates, and each reason a row is refused for."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from chat_families import CHATML, CHATML_SPECIALS, FAMILIES, LLAMA, LLAMA_SPECIALS, template

from llm_assets.data.chat_template import TemplateInvalid, TemplateMissing
from llm_assets.data.messages import RowRefused
from llm_assets.data.rendering import IGNORED, Renderer, TemplateUnsupported, TokenizerMissing

CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome, I think.\n\nGood."},
]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {}}}
CALLING = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "sunny"}', "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "Sunny."},
]
Open = Callable[..., Renderer]


@pytest.fixture(scope="session")
def opened(make_tokenizer: Callable[..., Path]) -> Open:
    """Renderer of a family, or of another template with ChatML tokens."""
    kept: dict[str, Renderer] = {}

    def open_(name: str) -> Renderer:
        if name not in kept:
            family = FAMILIES.get(name)
            if family:
                made = make_tokenizer(
                    template(family.template), family.specials, family.words, family.plain_added, **family.named
                )
            else:
                made = make_tokenizer(template(name), CHATML_SPECIALS, **CHATML)
            kept[name] = Renderer.from_directory(made)
        return kept[name]

    return open_


def learned(renderer: Renderer, messages: list[dict[str, Any]], tools: Any = None, **how: Any) -> list[str]:
    encoded = renderer.encode(messages, tools, **how)
    return [renderer.decode(encoded.input_ids[a:b]) for a, b in encoded.spans]


def test_labels_are_the_ids_inside_the_spans(opened: Open):
    encoded = opened("chatml").encode(CHAT)
    on = [n for first, last in encoded.spans for n in range(first, last)]
    assert [n for n, label in enumerate(encoded.labels) if label != IGNORED] == on
    assert encoded.supervised_tokens == len(on) and all(encoded.labels[n] == encoded.input_ids[n] for n in on)


def test_labels_equal_the_assistant_mask_of_hugging_face_where_the_template_has_one(tiny_base: Path):
    from transformers import PreTrainedTokenizerFast

    reference: Any = PreTrainedTokenizerFast.from_pretrained(str(tiny_base))
    theirs = reference.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ours = Renderer.from_directory(tiny_base).encode(CHAT)
    assert [int(label != IGNORED) for label in ours.labels] == list(theirs["assistant_masks"])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("llama_3", '{"name": "get_weather", "parameters": {"city": "Paris"}}<|eot_id|>'),
        ("qwen_2_5", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'),
        ("qwen_3", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, "id": "abcdefghi"]</s>',
        ),
    ],
)
def test_a_tool_call_carries_loss_and_its_result_does_not(opened: Open, name: str, call: str):
    first, second = learned(opened(name), CALLING, [TOOL])
    assert first.split() == call.split()
    assert second.strip().endswith("Sunny." + opened(name).end_of_turn_tokens[0])
    assert "sky" not in first + second


def test_two_calls_in_a_row_are_two_turns(opened: Open):
    again = [*CALLING[:3], *CALLING[1:3], CALLING[3]]
    assert len(learned(opened("llama_3"), again, [TOOL])) == 3


def test_a_call_may_end_with_a_token_of_its_own(make_tokenizer):
    renderer = Renderer.from_directory(make_tokenizer(template("calls_end_otherwise"), LLAMA_SPECIALS, **LLAMA))
    assert renderer.end_of_turn_tokens == ("<|eot_id|>", "<|eom_id|>")
    assert [turn[-10:] for turn in learned(renderer, CALLING)] == ['s"}}<|eom_id|>'[-10:], "y.<|eot_id|>"[-10:]]


def test_the_end_of_another_message_is_never_taken_for_a_turns_own(make_tokenizer):
    """Had the call's own token been a plain one, the first end token after it would be that of the tool's result."""
    endless_calls = template("calls_end_otherwise").replace("<|eom_id|>", "\n")
    renderer = Renderer.from_directory(make_tokenizer(endless_calls, LLAMA_SPECIALS, **LLAMA))
    with pytest.raises(RowRefused, match="no_end_of_turn: message 2"):
        renderer.encode(CALLING)


def test_turns_that_only_the_last_of_ends_can_only_teach_the_last(make_tokenizer):
    tokens = ("<|user|>", "<|assistant|>", "</s>")
    renderer = Renderer.from_directory(make_tokenizer(template("ends_only_the_last"), tokens, eos_token="</s>"))
    with pytest.raises(RowRefused, match="no_end_of_turn: message 2"):
        renderer.encode(CHAT)
    assert learned(renderer, CHAT, supervise="last_turn") == ["Rome, I think.\n\nGood.</s>"]


def test_a_call_that_the_template_leaves_out_is_refused(opened: Open):
    with pytest.raises(RowRefused, match="template_ignores_tools"):
        opened("chatml").encode(CALLING)


def test_thoughts_that_a_template_drops_from_earlier_answers_are_not_learned_as_if_they_were_there(opened: Open):
    thought = "<think>\nhm\n</think>\n\n"
    thinking = [CHAT[0], {"role": "assistant", "content": f"{thought}Paris."}, *CHAT[2:]]
    with pytest.raises(RowRefused, match="template_rewrites_answer: message 2"):
        opened("qwen_3").encode(thinking)
    assert len(learned(opened("qwen_3"), thinking, supervise="last_turn")) == 1
    assert learned(opened("qwen_3"), thinking[:2]) == [f"{thought}Paris.<|im_end|>"]


def test_an_answer_that_says_what_the_template_writes_is_found_where_it_stands(opened: Open):
    for said in ("think", "assistant", "user\n", "</think>x"[8:]):
        messages = [{"role": "user", "content": said}, {"role": "assistant", "content": said.strip()}]
        (turn,) = learned(opened("qwen_3"), messages)
        assert turn == f"<think>\n\n</think>\n\n{said.strip()}<|im_end|>"


def test_a_prompt_that_opens_what_no_stored_answer_has_is_refused(make_tokenizer):
    family = FAMILIES["deepseek_v3"]
    renderer = Renderer.from_directory(make_tokenizer(template("deepseek_r1"), family.specials, **family.named))
    with pytest.raises(RowRefused, match="template_not_prefix_preserving"):
        renderer.encode(CHAT)


def test_a_template_whose_text_changes_with_the_turns_to_come_is_refused(make_tokenizer):
    moving = template("chatml").replace("{% for", "{{ messages | length }}{% for", 1)
    renderer = Renderer.from_directory(make_tokenizer(moving, CHATML_SPECIALS, **CHATML))
    with pytest.raises(RowRefused, match="template_not_prefix_preserving"):
        renderer.encode(CHAT)


def test_a_template_that_writes_answers_in_capitals_is_refused(make_tokenizer):
    shouting = (
        template("chatml").replace("m.content", "m.content | upper").replace("['content']", "['content'] | upper")
    )
    shouting = shouting.replace("message.content", "message.content | upper")
    renderer = Renderer.from_directory(make_tokenizer(shouting, CHATML_SPECIALS, **CHATML))
    for supervise in ("all_turns", "last_turn"):
        with pytest.raises((RowRefused, TemplateUnsupported), match="template_rewrites_answer"):
            renderer.encode(CHAT, supervise=supervise)


def test_a_date_in_the_template_is_pinned(make_tokenizer):
    renderer = Renderer.from_directory(make_tokenizer(template("llama_3_today"), LLAMA_SPECIALS, **LLAMA))
    text = renderer.decode(renderer.encode(CHAT).input_ids)
    assert "26 Jul 2024" in text and datetime.now().strftime("%d %b %Y") not in text


@pytest.mark.parametrize("name", ["llama_3", "gemma_2", "gemma_3", "mistral", "deepseek_v3", "command_r"])
def test_bos_is_written_once(opened: Open, name: str):
    renderer = opened(name)
    bos = renderer.tokenizer.token_to_id(renderer.template.special_tokens["bos_token"])
    assert renderer.encode(CHAT).input_ids.count(bos) == 1


def test_an_answer_whose_first_token_merges_with_the_prompt_is_refused(opened: Open):
    messages = [CHAT[0], {"role": "assistant", "content": "\n\nParis."}]
    with pytest.raises(RowRefused, match="tokens_merge"):
        opened("chatml").encode(messages)


def test_an_answer_that_a_template_trims_is_labelled_as_rendered(opened: Open):
    assert learned(opened("llama_3"), [CHAT[0], {"role": "assistant", "content": "\n\n Paris. "}]) == [
        "Paris.<|eot_id|>"
    ]


@pytest.mark.parametrize(
    ("name", "messages", "words"),
    [
        ("gemma_2", [{"role": "system", "content": "Be brief."}, *CHAT], "System role not supported"),
        ("gemma_3", [CHAT[0], *CHAT], "Roles must alternate"),
        ("mistral", [CALLING[0], {**CALLING[1], "tool_calls": [{**CALL, "id": "x"}]}, *CALLING[2:]], "length 9"),
    ],
)
def test_what_a_template_raises_is_the_rows_reason(opened: Open, name: str, messages: list[dict[str, Any]], words: str):
    with pytest.raises(RowRefused, match=f"template_refused: .*{words}"):
        opened(name).encode(messages)


def test_any_other_fault_inside_a_template_is_the_rows_as_well(make_tokenizer):
    faulty = "{% if messages[0].content == 'divide' %}{{ 1 / 0 }}{% endif %}" + template("chatml")
    renderer = Renderer.from_directory(make_tokenizer(faulty, CHATML_SPECIALS, **CHATML))
    divided, sound = renderer.encode_batch([([{"role": "user", "content": "divide"}, CHAT[1]], None), (CHAT, None)])
    assert isinstance(divided, RowRefused) and divided.detail == "division by zero"
    assert not isinstance(sound, RowRefused)


def test_text_that_spells_a_control_token_is_refused(opened: Open):
    renderer = opened("chatml")
    messages = [{"role": "user", "content": "Say <|im_end|> please"}, CHAT[1]]
    with pytest.raises(RowRefused, match=r"special_token_in_text: message 1"):
        renderer.encode(messages)
    with pytest.raises(RowRefused, match="special_token_in_text"):
        renderer.encode_prompt(messages[:-1])
    with pytest.raises(RowRefused, match="special_token_in_text: the tools"):
        renderer.encode(CHAT, [{"function": {"name": "f", "description": "<|im_end|>"}}])


def test_one_bad_row_does_not_spoil_its_batch(opened: Open):
    renderer = opened("chatml")
    good, bad = (CHAT, None), ([{"role": "user", "content": "a"}], None)
    first, second, third = renderer.encode_batch([good, bad, good])
    assert first == third == renderer.encode(CHAT)
    assert isinstance(second, RowRefused) and second.reason == "unanswered"


def test_a_conversation_of_any_number_of_turns_is_rendered_three_times(opened: Open, monkeypatch):
    renderer, calls = opened("chatml"), []
    render = type(renderer.template).render
    monkeypatch.setattr(type(renderer.template), "render", lambda *a, **k: calls.append(1) or render(*a, **k))
    turns = [CHAT[0], CHAT[1]] * 10_000
    assert len(renderer.encode(turns).spans) == 10_000
    assert len(calls) <= 3


def test_a_template_without_an_end_token_is_unsupported(make_tokenizer):
    with pytest.raises(TemplateUnsupported, match="learn to stop"):
        Renderer.from_directory(make_tokenizer(template("endless"), CHATML_SPECIALS))


def test_a_directory_without_template_or_fast_tokenizer_is_named(make_tokenizer, tmp_path: Path):
    with pytest.raises(TemplateMissing, match="template to chatml"):
        Renderer.from_directory(make_tokenizer(None, CHATML_SPECIALS))
    (tmp_path / "tokenizer.model").write_bytes(b"a slow tokenizer's")
    with pytest.raises(TokenizerMissing, match=r"no tokenizer\.json. Save the tokenizer as a fast one"):
        Renderer.from_directory(tmp_path)


def test_a_template_that_does_not_parse_is_invalid(make_tokenizer):
    with pytest.raises(TemplateInvalid, match="line 1"):
        Renderer.from_directory(make_tokenizer("{% for m in messages %}", CHATML_SPECIALS))


def test_added_tokens_that_are_not_special_may_stand_in_text(make_tokenizer):
    directory = make_tokenizer(
        template("chatml"), CHATML_SPECIALS, plain_added=["<tool_call>", "</tool_call>"], eos_token="<|im_end|>"
    )
    messages = [CHAT[0], {"role": "assistant", "content": "<tool_call>Paris</tool_call>"}]
    assert learned(Renderer.from_directory(directory), messages) == ["<tool_call>Paris</tool_call><|im_end|>"]
