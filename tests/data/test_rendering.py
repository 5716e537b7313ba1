"""Labels against hand-written expectations, and token ids against Hugging Face, for the templates of model families."""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_assets.data.chat_template import DATE_STRING, TemplateInvalid, TemplateMissing, pinned_strftime
from llm_assets.data.messages import RowRefused, for_template
from llm_assets.data.rendering import IGNORED, Renderer, TemplateUnsupported, TokenizerMissing


def template(name: str) -> str:
    """A chat template in the manner of a model family, shortened to what decides token ids."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text()


CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_SPECIALS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|pad|>")
LLAMA = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
FAMILIES: dict[str, tuple[str, tuple[str, ...], dict[str, Any], str]] = {
    "chatml": (template("chatml"), CHATML_SPECIALS, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
    "chatml_wide_tags": (template("chatml_wide_tags"), CHATML_SPECIALS, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
    "chatml_narrow_tags": (template("chatml_narrow_tags"), CHATML_SPECIALS, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
    "llama_3": (template("llama_3"), LLAMA_SPECIALS, LLAMA, "<|eot_id|>"),
    "llama_3_today": (template("llama_3_today"), LLAMA_SPECIALS, LLAMA, "<|eot_id|>"),
    "qwen_2_5": (template("qwen_2_5"), CHATML_SPECIALS, {"eos_token": "<|im_end|>"}, "<|im_end|>"),
    "gemma": (
        template("gemma"),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "words": "metaspace"},
        "<end_of_turn>",
    ),
    "phi_3": (
        template("phi_3"),
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        {"eos_token": "<|endoftext|>"},
        "<|end|>",
    ),
    "mistral": (
        template("mistral"),
        ("<unk>", "<s>", "</s>"),
        {"bos_token": "<s>", "eos_token": "</s>", "words": "metaspace"},
        "</s>",
    ),
}
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
    {"role": "assistant", "content": "Rome, I think.\n\nGood."},
]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {}}}
CALLING = [
    {"role": "user", "content": "How is the weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "sunny"}'},
    {"role": "assistant", "content": "Sunny."},
]


@pytest.fixture(scope="session")
def directories(make_tokenizer) -> dict[str, Path]:
    return {
        name: make_tokenizer(template, specials, **named) for name, (template, specials, named, _) in FAMILIES.items()
    }


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, directories: dict[str, Path]) -> tuple[str, Path]:
    return request.param, directories[request.param]


def supervised(renderer: Renderer, labels: list[int]) -> list[str]:
    runs = np.split(np.asarray(labels), np.flatnonzero(np.diff(np.asarray(labels) != IGNORED)) + 1)
    return [renderer.decode(run.tolist()).strip() for run in runs if run[0] != IGNORED]


def reference_ids(directory: Path, messages: list[dict[str, Any]], tools: Any = None, **more: Any) -> list[int]:
    from transformers import PreTrainedTokenizerFast

    pinned = {"date_string": DATE_STRING, "strftime_now": pinned_strftime}
    reference: Any = PreTrainedTokenizerFast.from_pretrained(str(directory))
    return reference.apply_chat_template(
        for_template(messages), tools=tools, tokenize=True, return_dict=False, **pinned, **more
    )


def test_the_answers_and_their_end_tokens_carry_loss_and_nothing_else(family):
    name, directory = family
    renderer, end = Renderer.from_directory(directory), FAMILIES[name][3]
    encoded = renderer.encode(CHAT)
    assert supervised(renderer, encoded.labels) == [f"Paris.{end}", f"Rome, I think.\n\nGood.{end}"]
    assert all(label in (IGNORED, id) for label, id in zip(encoded.labels, encoded.input_ids, strict=True))
    assert encoded.supervised_tokens == sum(label != IGNORED for label in encoded.labels)


def test_the_last_turn_alone_can_carry_loss(family):
    name, directory = family
    renderer, end = Renderer.from_directory(directory), FAMILIES[name][3]
    encoded = renderer.encode(CHAT, supervise="last_turn")
    assert supervised(renderer, encoded.labels) == [f"Rome, I think.\n\nGood.{end}"]
    assert encoded.input_ids == renderer.encode(CHAT).input_ids


def test_token_ids_equal_those_of_hugging_face(family):
    _, directory = family
    renderer = Renderer.from_directory(directory)
    assert renderer.encode(CHAT).input_ids == reference_ids(directory, CHAT)
    assert renderer.encode_prompt(CHAT[:-1]) == reference_ids(directory, CHAT[:-1], add_generation_prompt=True)


def test_a_training_row_starts_with_the_prompt_that_inference_sends(family):
    _, directory = family
    renderer = Renderer.from_directory(directory)
    encoded = renderer.encode(CHAT)
    assert encoded.input_ids[: encoded.prompt_tokens] == renderer.encode_prompt(CHAT[:-1])
    assert encoded.labels[encoded.prompt_tokens] != IGNORED


def test_labels_equal_the_assistant_mask_of_hugging_face_where_the_template_has_one(tiny_base: Path):
    from transformers import PreTrainedTokenizerFast

    reference: Any = PreTrainedTokenizerFast.from_pretrained(str(tiny_base))
    theirs = reference.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ours = Renderer.from_directory(tiny_base).encode(CHAT)
    assert [int(label != IGNORED) for label in ours.labels] == list(theirs["assistant_masks"])


@pytest.mark.parametrize("name", ["llama_3", "qwen_2_5"])
def test_a_tool_call_carries_loss_and_its_result_does_not(name: str, directories: dict[str, Path]):
    renderer, end = Renderer.from_directory(directories[name]), FAMILIES[name][3]
    encoded = renderer.encode(CALLING, [TOOL])
    call, answer = supervised(renderer, encoded.labels)
    assert "get_weather" in call and call.endswith(end)
    assert answer == f"Sunny.{end}"
    assert encoded.input_ids == reference_ids(directories[name], CALLING, [TOOL])


def test_a_call_that_the_template_leaves_out_is_refused(directories: dict[str, Path]):
    with pytest.raises(RowRefused, match="template_ignores_tools"):
        Renderer.from_directory(directories["chatml"]).encode(CALLING)


def test_a_date_in_the_template_is_pinned(directories: dict[str, Path]):
    renderer = Renderer.from_directory(directories["llama_3_today"])
    text = renderer.decode(renderer.encode(CHAT).input_ids)
    assert "26 Jul 2024" in text and datetime.now().strftime("%d %b %Y") not in text


def test_bos_is_written_once(directories: dict[str, Path]):
    for name in ("llama_3", "gemma", "mistral"):
        renderer = Renderer.from_directory(directories[name])
        bos = renderer.tokenizer.token_to_id(renderer.template.special_tokens["bos_token"])
        assert renderer.encode(CHAT).input_ids.count(bos) == 1


def test_an_answer_whose_first_token_merges_with_the_prompt_is_refused(directories: dict[str, Path]):
    messages = [CHAT[0], {"role": "assistant", "content": "\n\nParis."}]
    with pytest.raises(RowRefused, match="tokens_merge"):
        Renderer.from_directory(directories["chatml"]).encode(messages)


def test_an_answer_that_a_template_trims_is_labelled_as_rendered(directories: dict[str, Path]):
    renderer = Renderer.from_directory(directories["llama_3"])
    encoded = renderer.encode([CHAT[0], {"role": "assistant", "content": "\n\n Paris. "}])
    assert supervised(renderer, encoded.labels) == ["Paris.<|eot_id|>"]


def test_a_role_the_template_does_not_take_is_refused_with_its_own_words(directories: dict[str, Path]):
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    with pytest.raises(RowRefused, match="template_refused: System role not supported"):
        Renderer.from_directory(directories["gemma"]).encode(messages)


def test_text_that_spells_a_control_token_is_refused(directories: dict[str, Path]):
    messages = [{"role": "user", "content": "Say <|im_end|> please"}, CHAT[1]]
    renderer = Renderer.from_directory(directories["chatml"])
    with pytest.raises(RowRefused, match="special_token_in_text"):
        renderer.encode(messages)
    with pytest.raises(RowRefused, match="special_token_in_text"):
        renderer.encode_prompt(messages[:-1])


def test_a_template_that_rewrites_earlier_answers_can_only_teach_the_last(make_tokenizer):
    renderer = Renderer.from_directory(make_tokenizer(template("qwen_3"), CHATML_SPECIALS, eos_token="<|im_end|>"))
    thinking = [CHAT[0], {"role": "assistant", "content": "<think>\nhm\n</think>\nParis."}, *CHAT[2:]]
    with pytest.raises(RowRefused, match="template_rewrites_answer"):
        renderer.encode(thinking)
    encoded = renderer.encode(thinking, supervise="last_turn")
    assert supervised(renderer, encoded.labels) == ["Rome, I think.\n\nGood.<|im_end|>"]


def test_a_template_that_is_not_prefix_preserving_is_refused(make_tokenizer):
    moving = template("chatml").replace("{% for", "{{ messages | length }}{% for", 1)
    renderer = Renderer.from_directory(make_tokenizer(moving, CHATML_SPECIALS, eos_token="<|im_end|>"))
    with pytest.raises(RowRefused, match="template_not_prefix_preserving"):
        renderer.encode(CHAT)


def test_one_bad_row_does_not_spoil_its_batch(directories: dict[str, Path]):
    renderer = Renderer.from_directory(directories["chatml"])
    good, bad = (CHAT, None), ([{"role": "user", "content": "a"}], None)
    first, second, third = renderer.encode_batch([good, bad, good])
    assert first == third == renderer.encode(CHAT)
    assert isinstance(second, RowRefused) and second.reason == "bad_roles"


def test_a_template_without_an_end_token_is_unsupported(make_tokenizer):
    with pytest.raises(TemplateUnsupported, match="learn to stop"):
        Renderer.from_directory(make_tokenizer(template("endless"), CHATML_SPECIALS))


def test_a_directory_without_template_or_tokenizer_is_named(make_tokenizer, tmp_path: Path):
    with pytest.raises(TemplateMissing, match="template to chatml"):
        Renderer.from_directory(make_tokenizer(None, CHATML_SPECIALS))
    with pytest.raises(TokenizerMissing, match=r"no tokenizer\.json"):
        Renderer.from_directory(tmp_path)


def test_a_template_that_does_not_parse_is_invalid(make_tokenizer):
    with pytest.raises(TemplateInvalid, match="line 1"):
        Renderer.from_directory(make_tokenizer("{% for m in messages %}", CHATML_SPECIALS))


def test_added_tokens_that_are_not_special_may_stand_in_text(make_tokenizer):
    directory = make_tokenizer(
        template("chatml"), CHATML_SPECIALS, plain_added=["<tool_call>", "</tool_call>"], eos_token="<|im_end|>"
    )
    renderer = Renderer.from_directory(directory)
    messages = [CHAT[0], {"role": "assistant", "content": "<tool_call>Paris</tool_call>"}]
    assert supervised(renderer, renderer.encode(messages).labels) == ["<tool_call>Paris</tool_call><|im_end|>"]
