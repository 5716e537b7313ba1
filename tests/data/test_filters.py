"""Each filter drops the damage it exists for, lets sound rows pass, and refuses a wrong setting when it is written."""

from typing import Any

import pytest
from pydantic import ValidationError

from llm_assets.core import Config
from llm_assets.data import CurationConfig
from llm_assets.data.filters import CharsetFilter, LanguageFilter, LengthFilter, PhraseFilter, RepetitionFilter
from llm_assets.data.messages import RowRefused, message

ENGLISH = "The committee will publish its findings next month, after every member has read the final report."
GERMAN = "Der Ausschuss veröffentlicht seine Ergebnisse im nächsten Monat, nachdem alle Mitglieder den Bericht kennen."
LIST = "\n".join(
    f"{n}. {word}: a dish of {word} with fresh herbs" for n, word in enumerate(["leek", "beet", "kale", "corn"])
)


def reason(chosen: Any, answer: str, question: str = "Tell me about it, please.") -> str | None:
    try:
        chosen.judge([message("system", "x" * 500), message("user", question), message("assistant", answer)])
    except RowRefused as refused:
        return refused.reason
    return None


@pytest.mark.parametrize(
    ("bounds", "answer", "dropped_as"),
    [
        ({"min_chars": 520, "max_chars": 600}, "fine", None),
        ({"max_chars": 520}, "fine", "too_long_chars"),
        ({"min_chars": 600}, "fine", "too_short_chars"),
        ({"min_answer_chars": 4, "max_answer_chars": 4}, "fine", None),
        ({"min_answer_chars": 5}, "fine", "too_short_answer_chars"),
        ({"max_answer_chars": 3}, "fine", "too_long_answer_chars"),
        ({"min_turns": 2, "max_turns": 2}, "fine", None),
        ({"min_turns": 3}, "fine", "too_short_turns"),
    ],
)
def test_length_bounds_are_inclusive(bounds: dict[str, int], answer: str, dropped_as: str | None):
    assert reason(LengthFilter(**bounds), answer) == dropped_as


def test_a_conversation_of_too_many_turns_is_dropped():
    turns = [message(role, "x") for _ in range(5) for role in ("user", "assistant")]
    LengthFilter(max_turns=10).judge(turns)
    with pytest.raises(RowRefused, match="10 messages, at most 9"):
        LengthFilter(max_turns=9).judge(turns)


@pytest.mark.parametrize(
    ("answer", "question", "dropped_as"),
    [
        (ENGLISH, ENGLISH, None),
        (GERMAN, GERMAN, "language"),
        ("ok", "why?", None),  # too short to be sure
        ("SELECT a, count(*) FROM t GROUP BY a", "def f(x): return x + 1", None),
    ],
)
def test_only_what_is_surely_another_language_is_dropped(answer: str, question: str, dropped_as: str | None):
    assert reason(LanguageFilter(keep=("en",)), answer, question) == dropped_as
    assert reason(LanguageFilter(keep=("en", "de")), answer, question) is None


@pytest.mark.parametrize(
    ("scripts", "answer", "dropped_as"),
    [
        (("Latin",), "plain ASCII, 100 %", None),
        (("Latin",), "naïve café, “quoted” – 3 × 4 😀", None),
        (("Latin",), "это русский текст", "script"),
        (("Latin", "Cyrillic"), "это русский текст", None),
        ((), "这是中文", None),
        ((), "broken ��� text", "damaged_text"),
        ((), "terminal \x1b[0m codes \x00", "damaged_text"),
        ((), "tabs\tand\r\nlines", None),
    ],
)
def test_other_scripts_and_traces_of_a_wrong_encoding_are_dropped(
    scripts: tuple[str, ...], answer: str, dropped_as: str | None
):
    assert reason(CharsetFilter(scripts=scripts), answer) == dropped_as


@pytest.mark.parametrize(
    ("answer", "dropped_as"),
    [
        (ENGLISH + " " + GERMAN, None),
        (LIST, None),
        ("yes " * 19, None),  # below min_words
        ("I agree with that.\n" * 30, "repeated_lines"),
        ("if x {\n  call(one, two)\n}\nelse {\n  other(three, four)\n}\nif y {\n  f(a b c d e f)\n}\n", None),
        (ENGLISH + " and so on and on and on" * 20, "repeated_runs"),
    ],
)
def test_answers_that_repeat_themselves_are_dropped(answer: str, dropped_as: str | None):
    assert reason(RepetitionFilter(), answer) == dropped_as


def test_answers_that_compress_too_well_are_dropped():
    loose = RepetitionFilter(max_repeated_run_share=1, max_repeated_line_share=1)
    assert reason(loose, "all work and no play " * 100) == "compressible"
    assert reason(loose, ENGLISH + GERMAN + LIST) is None


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I cannot have opinions.",
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but as an AI I must decline.",
        "I cannot fulfill your request.",
        "I am just a language model and have no feelings.",
        "My knowledge cutoff is September 2021.",
    ],
)
def test_refusals_are_dropped(answer: str):
    assert reason(PhraseFilter(), answer) == "refusal"
    assert reason(PhraseFilter(refusals=False), answer) is None


@pytest.mark.parametrize(
    "answer",
    [
        "An AI language model predicts the next token.",
        "I'm sorry to hear that; try restarting it.",
        "The court said it cannot comply with the treaty.",
        "We can help with that request tomorrow.",
    ],
)
def test_answers_about_such_things_are_kept(answer: str):
    assert reason(PhraseFilter(), answer) is None
    assert reason(PhraseFilter(), "sure", question="As an AI language model, what can you do?") is None


def test_phrases_of_your_own_are_dropped_whatever_their_case():
    mine = PhraseFilter(patterns=(r"click here", r"\bsponsored by \w+"))
    assert reason(mine, "Just CLICK HERE now") == reason(mine, "Sponsored by Acme") == "phrase"
    assert reason(mine, "nothing of the kind") is None


@pytest.mark.parametrize(
    ("block", "broken", "why"),
    [
        (LengthFilter, {"min_chars": 9, "max_chars": 3}, "min_chars 9 is above max_chars 3"),
        (LanguageFilter, {"keep": ["english"]}, "'english' is not among"),
        (CharsetFilter, {"scripts": ["Klingon"]}, "'Klingon' is no Unicode script"),
        (PhraseFilter, {"patterns": ["(unclosed"]}, r"'\(unclosed' is no regular expression"),
        (RepetitionFilter, {"max_compression_ratio": 1}, "greater than 1"),
    ],
)
def test_a_wrong_setting_is_refused_when_it_is_written(block: type[Config], broken: dict[str, Any], why: str):
    with pytest.raises(ValidationError, match=why):
        block(**broken)


def test_filters_that_are_not_named_do_not_run():
    config = CurationConfig()
    assert not any((config.length, config.language, config.charset, config.repetition, config.phrases, config.pii))
