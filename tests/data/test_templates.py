"""Random conversations through every family: labels against a reference without templates, ids against transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_families import FAMILIES, Family, template
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_assets.data.chat_template import DATE_STRING, pinned_strftime
from llm_assets.data.messages import RowRefused
from llm_assets.data.rendering import IGNORED, Encoded, Renderer

WORDS = (
    "Paris",
    " is",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "0",
    "12",
    "!",
    '"',
    "'s",
    "{}",
    "<",
    "|>",
    "é",
    "ß",
    "日本",
    "🙂",
    "user",
)
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
PLAIN = TEXT.map(str.strip)  # no space at either end, so nothing to merge with
MOSTLY_PLAIN = st.one_of(PLAIN, PLAIN, TEXT)
BYTE_LEVEL = [name for name, family in FAMILIES.items() if family.words in ("byte_level", "gpt2")]


@pytest.fixture(scope="session")
def opened(make_tokenizer: Callable[..., Path]) -> dict[str, tuple[Renderer, Any]]:
    """Our renderer and transformers' tokenizer of every family."""
    from transformers import PreTrainedTokenizerFast

    found = {}
    for name, family in FAMILIES.items():
        directory = make_tokenizer(
            template(family.template), family.specials, family.words, family.plain_added, **family.named
        )
        reference = PreTrainedTokenizerFast.from_pretrained(str(directory))
        found[name] = (Renderer.from_directory(directory), reference)
    return found


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[str, list[dict[str, Any]]]:
    name = draw(st.sampled_from(sorted(FAMILIES)))
    messages = []
    if FAMILIES[name].system and draw(st.booleans()):
        messages.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": "user", "content": draw(text)}, {"role": "assistant", "content": draw(text)}]
    return name, messages


def bounded(examples: int) -> Callable[[Any], Any]:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def reference_labels(renderer: Renderer, pieces: list[tuple[str, bool]]) -> list[int] | None:
    """Labels by the tokenizer's own offsets, token by token; None where a token spans a border."""
    encoding = renderer.tokenizer.encode("".join(text for text, _ in pieces), add_special_tokens=False)
    labels, place, ranges = [IGNORED] * len(encoding.ids), 0, []
    for text, learned in pieces:
        ranges += [(place, place + len(text))] if learned else []
        place += len(text)
    for n, (start, end) in enumerate(encoding.offsets):
        for first, last in ranges:
            if start < first < end or start < last < end:
                return None
            if first <= start < last and end <= last:
                labels[n] = encoding.ids[n]
    return labels


def encoded(renderer: Renderer, messages: list[dict[str, Any]], **how: Any) -> Encoded | RowRefused:
    (found,) = renderer.encode_batch([(messages, None)], **how)
    return found


@bounded(400)
@given(conversation=conversations(MOSTLY_PLAIN))
def test_labels_equal_the_reference_or_the_row_is_refused_for_a_merge(opened, conversation):
    name, messages = conversation
    renderer, _ = opened[name]
    found, expected = encoded(renderer, messages), reference_labels(renderer, FAMILIES[name].pieces(messages))
    if isinstance(found, RowRefused):
        assert expected is None and found.reason == "tokens_merge"
    else:
        assert found.labels == expected


@bounded(300)
@given(conversation=conversations(PLAIN))
def test_rows_without_outer_spaces_are_never_refused_and_labels_decode_to_the_answers(opened, conversation):
    name, messages = conversation
    renderer, family = opened[name][0], FAMILIES[name]
    found = encoded(renderer, messages)
    assert isinstance(found, Encoded)
    learned = [text for text, on in family.pieces(messages) if on]
    if name in BYTE_LEVEL:
        assert [renderer.decode(found.input_ids[a:b]) for a, b in found.spans] == learned
    assert len(found.spans) == len(learned)


@bounded(300)
@given(conversation=conversations(MOSTLY_PLAIN))
def test_ids_equal_those_of_apply_chat_template(opened, conversation):
    name, messages = conversation
    renderer, reference = opened[name]
    pinned = {"date_string": DATE_STRING, "strftime_now": pinned_strftime, "tokenize": True, "return_dict": False}
    found = encoded(renderer, messages)
    if isinstance(found, Encoded):
        assert found.input_ids == reference.apply_chat_template(messages, **pinned)
        prompt = reference.apply_chat_template(messages[:-1], add_generation_prompt=True, **pinned)
        assert found.input_ids[: found.prompt_tokens] == prompt == renderer.encode_prompt(messages[:-1])


@bounded(150)
@given(conversation=conversations(PLAIN), flags=st.lists(st.sampled_from([None, True, False]), min_size=3, max_size=3))
def test_single_turns_and_the_last_can_be_chosen(opened, conversation, flags):
    name, messages = conversation
    renderer = opened[name][0]
    everything = encoded(renderer, messages)
    assert isinstance(everything, Encoded)
    assert encoded(renderer, messages, supervise="last_turn").spans == everything.spans[-1:]
    answers = [n for n, turn in enumerate(messages) if turn["role"] == "assistant"]
    flagged = [dict(turn) for turn in messages]
    for n, flag in zip(answers, flags, strict=False):
        flagged[n] |= {} if flag is None else {"train": flag} if n % 4 else {"weight": int(flag)}
    chosen = [span for span, flag in zip(everything.spans, flags, strict=False) if flag is not False]
    found = encoded(renderer, flagged)
    if chosen:
        assert list(found.spans) == chosen and found.input_ids == everything.input_ids
        assert found.prompt_tokens == everything.prompt_tokens
    else:
        assert isinstance(found, RowRefused) and found.reason == "nothing_to_learn"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tables_of_this_file_are_what_the_templates_write(name: str, opened):
    family: Family = FAMILIES[name]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    text = opened[name][0].template.render(messages)
    assert text == "".join(piece for piece, _ in family.pieces(messages))
