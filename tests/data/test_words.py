"""Words one by one give the ids of the whole text, and other tokenizers are left to themselves."""

import json
from pathlib import Path

import pytest
from chat_families import CHATML, CHATML_SPECIALS, FAMILIES, template
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_assets.data.words import WordEncoder

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_of(directory: Path, pattern: str | None = None):
    """The stored tokenizer, cutting words by another expression where one is given."""
    from tokenizers import Tokenizer

    stored = json.loads((directory / "tokenizer.json").read_text())
    if pattern:
        stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    return Tokenizer.from_str(json.dumps(stored))


@pytest.fixture(scope="module", params=["gpt2", "qwen", "llama_3", "o200k"])
def tokenizer(request: pytest.FixtureRequest, make_tokenizer):
    if request.param == "gpt2":
        return tokenizer_of(make_tokenizer(template("chatml"), CHATML_SPECIALS, "gpt2", **CHATML))
    directory = make_tokenizer(template("chatml"), CHATML_SPECIALS, **CHATML)
    return tokenizer_of(directory, {"llama_3": LLAMA_3, "o200k": O200K}.get(request.param))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    text=st.lists(st.one_of(st.text(st.characters(max_codepoint=127), max_size=12), st.sampled_from(CHATML_SPECIALS)))
)
def test_any_ascii_text_gets_the_ids_of_the_tokenizer(tokenizer, text: list[str]):
    encoder, joined = WordEncoder(tokenizer), "".join(text)
    assert encoder.by_words
    assert encoder.encode(joined) == tokenizer.encode(joined, add_special_tokens=False).ids


def test_other_alphabets_go_through_the_tokenizer_in_the_same_batch(tokenizer):
    texts = ["plain", "naïve", "日本 plain", "", "<|im_end|>é"]
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert WordEncoder(tokenizer).encode_batch(texts) == whole


@pytest.mark.parametrize("name", ["mistral", "chatml_unigram"])
def test_tokenizers_that_do_not_cut_bytes_into_words_are_left_to_themselves(make_tokenizer, name: str):
    family = FAMILIES[name]
    other = tokenizer_of(make_tokenizer(template(family.template), family.specials, family.words, **family.named))
    encoder = WordEncoder(other)
    assert not encoder.by_words
    assert encoder.encode_batch(["a b"]) == [other.encode("a b", add_special_tokens=False).ids]


def test_where_the_two_ways_disagree_the_tokenizer_is_right_and_says_so(tokenizer, caplog: pytest.LogCaptureFixture):
    encoder, texts = WordEncoder(tokenizer), ["how", "é", "how many"]
    encoder._ids["how"] = [1, 2, 3]  # a word that was learned wrongly
    whole = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert encoder.encode_batch(texts) == whole
    assert "'how' differs" in caplog.text and not encoder.by_words
    assert encoder.encode("how") == whole[0] and encoder.encode_batch(texts) == whole
