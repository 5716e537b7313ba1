"""Each check of a tokenized dataset passes on a sound one, and fails on the damage it exists for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_families import CHATML_SPECIALS, FAMILIES, template
from chat_rows_by_hand import two_turns, write_split, write_two_turn_chat

from llm_assets.data import TokenizationConfig
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS
from llm_assets.data.template_parity import TokenIds, template_parity, transformers_ids
from llm_assets.data.token_checks import (
    eos_supervised,
    label_mask,
    special_tokens_sound,
    supervised_sample,
    token_stats,
    truncation_share,
)
from llm_assets.data.token_config import TokenCheckConfig
from llm_assets.data.token_files import read_tokens, write_rows
from llm_assets.data.token_samples import sampled_rows
from llm_assets.data.token_statistics import length_bins, stability_index
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.engine.job import EngineEnvironmentMissing
from llm_assets.engine.tokenizer import EngineTokenizerFailed, engine_token_ids

BOUNDS = TokenCheckConfig()
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_turn_chat(tmp_path_factory.mktemp("chat"))


def tokenized(chat: Path, base: Path, out: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    out.mkdir()
    return out, tokenize_dataset(chat, base, out, TokenizationConfig(**config), log=lambda _: None)


@pytest.fixture(scope="module")
def sound(chat: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return tokenized(chat, tiny_base, tmp_path_factory.mktemp("sound") / "tokens", max_length_tokens=128)


@pytest.fixture
def broken(sound: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[[Edit], Path]:
    """Copy the sound dataset with one training row's ids and labels replaced."""

    def edit(change: Edit) -> Path:
        shutil.copytree(sound[0], tmp_path / "broken")
        columns = ["row_id", "input_ids", "labels", "prompt_tokens"]
        rows = read_tokens(tmp_path / "broken", "train", columns).to_pylist()
        change(rows[0])
        write_rows(tmp_path / "broken", "train", rows)
        return tmp_path / "broken"

    return edit


def test_all_checks_pass_on_a_sound_dataset(sound: tuple[Path, dict[str, Any]], chat: Path):
    out, statistics = sound
    samples = list(sampled_rows(out, chat, 10))
    results = {
        "token_stats": token_stats(statistics, BOUNDS, statistics),
        "eos_supervised": eos_supervised(out, statistics["end_of_turn_ids"]),
        "label_mask": label_mask(out, chat, statistics, BOUNDS),
        "special_tokens": special_tokens_sound(out, statistics["end_of_turn_ids"]),
        "truncation_share": truncation_share(statistics, BOUNDS),
        "template_parity": template_parity(samples, *[transformers_ids(out / "tokenizer", samples)] * 2),
    }
    assert {name: r.passed for name, r in results.items()} == dict.fromkeys(results, True)
    assert results["eos_supervised"].numbers["turns"] == 2 * 84
    assert results["template_parity"].numbers["rows_compared"] == 30
    assert results["special_tokens"].summary == (
        "There is no bos token; turns end with <|im_end|>; padding is <|endoftext|>, which stands in no row."
    )


@pytest.mark.parametrize("name", ["qwen_3", "command_r", "mistral", "deepseek_v3"])
def test_what_a_template_writes_around_answers_is_not_taken_for_wrong_labels(name, make_tokenizer, chat, tmp_path):
    family = FAMILIES[name]
    base = make_tokenizer(template(family.template), family.specials, family.words, family.plain_added, **family.named)
    out, statistics = tokenized(chat, base, tmp_path / "t")
    assert label_mask(out, chat, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed


def test_token_stats_fails_outside_its_band_and_on_drift_of_the_mean(sound: tuple[Path, dict[str, Any]]):
    _, statistics = sound
    mean = statistics["mean_length_tokens"]
    assert not token_stats(statistics, TokenCheckConfig(min_mean_length_tokens=mean + 1)).passed
    assert not token_stats(statistics, TokenCheckConfig(max_mean_length_tokens=mean - 1)).passed
    previous = {**statistics, "mean_length_tokens": mean * 3}
    assert not token_stats(statistics, BOUNDS, previous).passed
    assert token_stats(statistics, TokenCheckConfig(max_drift=0.7), previous).passed


def test_token_stats_speaks_in_sentences(sound: tuple[Path, dict[str, Any]]):
    assert "(allowed: at least 1). There is no previous dataset" in token_stats(sound[1], BOUNDS).summary
    banded = token_stats(sound[1], TokenCheckConfig(max_mean_length_tokens=900), sound[1]).summary
    assert "at least 1, at most 900" in banded and "a change of 0.0% (allowed 50%)" in banded


def test_token_stats_fails_when_answers_become_of_another_kind_at_the_same_mean(sound: tuple[Path, dict[str, Any]]):
    _, statistics = sound
    draw = np.random.default_rng(0)
    alike, other = draw.normal(100, 10, 500).astype(int), np.where(draw.random(500) < 0.5, 60, 140)
    before, now = _with_answers(statistics, alike), _with_answers(statistics, other)
    result = token_stats(now, BOUNDS, before)
    assert not result.passed and result.numbers["drift"] == 0 and result.numbers["completion_psi"] > 1
    assert token_stats(now, TokenCheckConfig(max_length_psi=100), before).passed
    assert token_stats(_with_answers(statistics, draw.normal(100, 10, 500).astype(int)), BOUNDS, before).passed


def _with_answers(statistics: dict[str, Any], lengths: np.ndarray) -> dict[str, Any]:
    train = statistics["splits"]["train"]
    bins = {**train["bins"], "completion": length_bins(lengths)}
    return {**statistics, "splits": {**statistics["splits"], "train": {**train, "bins": bins}}}


def test_two_samples_of_the_same_lengths_show_next_to_no_drift_however_small():
    draw = np.random.default_rng(1)
    for rows in (40, 400, 4000):
        pairs = [(draw.lognormal(5, 0.8, rows), draw.lognormal(5, 0.8, rows)) for _ in range(20)]
        found = [stability_index(length_bins(now), length_bins(before)) for now, before in pairs]
        assert np.median(found) < 0.1
    assert stability_index([], [1]) == stability_index([5], [7]) == 0


def test_the_index_is_that_of_its_formula():
    now, before = [300, 700], [500, 500]
    shares = [(0.3, 0.5), (0.7, 0.5)]
    expected = sum((p - q) * np.log(p / q) for p, q in shares) - 1 * (1 / 1000 + 1 / 1000)
    assert stability_index(now, before) == pytest.approx(expected)


def test_eos_supervised_fails_on_a_turn_whose_end_carries_no_loss(broken):
    def drop_last_label(row: dict[str, Any]) -> None:
        last = max(n for n, label in enumerate(row["labels"]) if label != -100)
        row["labels"][last] = -100

    result = eos_supervised(broken(drop_last_label), [2])
    assert not result.passed and result.numbers["turns_without_end"] == 1 and result.rows[0]["row_id"] == "train0"


def test_eos_supervised_fails_when_nothing_carries_loss(tmp_path: Path):
    for split in SPLITS:
        write_rows(tmp_path, split, [{"row_id": "a", "input_ids": [1, 2], "labels": [-100, -100], "prompt_tokens": 1}])
    assert not eos_supervised(tmp_path, [2]).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(labels=[-100] * len(row["labels"])),
        lambda row: row.update(labels=list(row["input_ids"])),
        lambda row: row["labels"].__setitem__(slice(0, 5), row["input_ids"][:5]),
        lambda row: row["labels"].__setitem__(len(row["labels"]) - 3, -100),
        lambda row: row["input_ids"].__setitem__(slice(-4, -2), row["input_ids"][3:5]),
    ],
    ids=["no label", "all labelled", "user text labelled", "a hole in an answer", "another answer"],
)
def test_label_mask_fails_on_wrong_labels(broken, chat: Path, sound, change):
    result = label_mask(broken(change), chat, sound[1], BOUNDS)
    assert not result.passed and result.rows[0]["row_id"] == "train0"


def test_label_mask_fails_outside_its_share_and_on_many_refused_rows(sound: tuple[Path, dict[str, Any]], chat: Path):
    out, statistics = sound
    assert not label_mask(out, chat, statistics, TokenCheckConfig(min_supervised_share=0.9)).passed
    assert not label_mask(out, chat, statistics, TokenCheckConfig(max_supervised_share=0.1)).passed
    refused = {**statistics, "dropped": {"tokens_merge": 20}}
    assert not label_mask(out, chat, refused, BOUNDS).passed


def test_special_tokens_fails_on_padding_inside_a_row(broken):
    result = special_tokens_sound(broken(lambda row: row["input_ids"].__setitem__(3, 0)), [2])
    assert not result.passed and result.numbers["rows_with_pad_inside"] == 1


def test_special_tokens_fails_on_two_bos(chat: Path, make_tokenizer, tmp_path: Path):
    specials = ("<s>", "<pad>", *CHATML_SPECIALS)
    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    once = make_tokenizer("{{ bos_token }}" + template("chatml"), specials, **names)
    twice = make_tokenizer("{{ bos_token }}{{ bos_token }}" + template("chatml"), specials, **names)
    assert special_tokens_sound(*_with_ids(tokenized(chat, once, tmp_path / "a"))).passed
    result = special_tokens_sound(*_with_ids(tokenized(chat, twice, tmp_path / "b")))
    assert not result.passed and result.numbers["rows_with_double_bos"] == 84


def test_special_tokens_fails_when_padding_also_ends_turns_unless_nothing_else_can_pad(
    chat: Path, make_tokenizer, tmp_path: Path
):
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    base = make_tokenizer(template("chatml"), CHATML_SPECIALS, **names)
    result = special_tokens_sound(*_with_ids(tokenized(chat, base, tmp_path / "a")))
    assert not result.passed and "tokenization.pad_token to <|endoftext|>" in result.summary
    remedied = tokenized(chat, base, tmp_path / "b", pad_token="<|endoftext|>")
    assert special_tokens_sound(*_with_ids(remedied)).passed
    nothing_else = make_tokenizer(template("chatml"), CHATML_SPECIALS[1:], **names)
    assert special_tokens_sound(*_with_ids(tokenized(chat, nothing_else, tmp_path / "c"))).passed


def _with_ids(result: tuple[Path, dict[str, Any]]) -> tuple[Path, list[int]]:
    return result[0], result[1]["end_of_turn_ids"]


def test_truncation_share_fails_when_too_many_rows_are_dropped_or_cut(sound: tuple[Path, dict[str, Any]]):
    statistics = {**sound[1], "dropped": {"too_long": 8}, "dropped_too_long": 8}
    assert truncation_share(statistics, BOUNDS).passed
    cut = truncation_share({**statistics, "cut_rows": 8}, BOUNDS)
    assert not cut.passed and "8 were dropped, 8 lost their oldest turns" in cut.summary
    assert truncation_share({**statistics, "cut_rows": 8}, TokenCheckConfig(max_dropped_share=0.2)).passed


def test_template_parity_fails_when_stored_ids_differ(broken, chat: Path):
    path = broken(lambda row: row["input_ids"].__setitem__(5, row["input_ids"][5] + 1))
    samples = list(sampled_rows(path, chat, 10))
    theirs = transformers_ids(path / "tokenizer", samples)
    result = template_parity(samples, theirs, theirs)
    named = {"split": "train", "row_id": "train0", "part": "row", "first_difference_at": 5}
    assert not result.passed and result.rows[0] == {**named, "against": "transformers"}


def test_template_parity_fails_when_the_template_beside_the_tokens_is_another(sound, chat: Path, tmp_path: Path):
    shutil.copytree(sound[0] / "tokenizer", tmp_path / "tokenizer")
    template = tmp_path / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant\n\n"))
    samples = list(sampled_rows(sound[0], chat, 10))
    theirs = transformers_ids(tmp_path / "tokenizer", samples)
    result = template_parity(samples, theirs, theirs)
    assert not result.passed and not result.warn_only and result.numbers["rows_different"] == 30


def test_template_parity_fails_when_the_engine_alone_encodes_otherwise(sound, chat: Path):
    samples = list(sampled_rows(sound[0], chat, 2))
    ours = [TokenIds(s.input_ids, s.input_ids[: s.prompt_tokens]) for s in samples]
    engine = [TokenIds([9, *ids.row], ids.prompt) for ids in ours]
    result = template_parity(samples, ours, engine)
    assert not result.passed and not result.warn_only and {row["against"] for row in result.rows} == {"engine"}


def test_template_parity_without_an_engine_is_a_warning_and_no_pass(sound, chat: Path):
    samples = list(sampled_rows(sound[0], chat, 2))
    ours = [TokenIds(s.input_ids, s.input_ids[: s.prompt_tokens]) for s in samples]
    result = template_parity(samples, ours, None, "No engine environment at x. Run `make engine-env`.")
    assert not result.passed and result.warn_only and "make engine-env" in result.summary
    wrong = [TokenIds([9, *ids.row], ids.prompt) for ids in ours]
    assert not template_parity(samples, wrong, None, "").warn_only


def test_the_engines_environment_makes_the_same_ids_of_calls_thoughts_and_dates(make_tokenizer, tmp_path: Path):
    family = FAMILIES["llama_3"]
    base = make_tokenizer(template("llama_3_today"), family.specials, **family.named)
    call = json.dumps([{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}])
    turns = [
        message("user", "é 日本?"),
        message("assistant", "", call),
        message("tool", "sunny"),
        message("assistant", "So."),
    ]
    for split in SPLITS:
        write_split(tmp_path, split, [turns, two_turns(split, 1)])
    out, _ = tokenized(tmp_path, base, tmp_path / "t")
    samples = list(sampled_rows(out, tmp_path, 2))
    configuration = tmp_path / "config.json"
    configuration.write_text('{"model_type": "llama"}')
    engine = engine_token_ids(None, out / "tokenizer", samples, configuration)
    assert template_parity(samples, transformers_ids(out / "tokenizer", samples), engine).passed
    (out / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(EngineTokenizerFailed, match="make engine-env"):
        engine_token_ids(None, out / "tokenizer", samples)
    with pytest.raises(EngineEnvironmentMissing, match="make engine-env"):
        engine_token_ids(str(tmp_path / "nowhere"), out / "tokenizer", samples)


def test_the_sample_for_people_marks_what_carries_loss(sound):
    ((row_id, pieces),) = supervised_sample(sound[0], rows=1)
    assert row_id == "train0"
    assert [text for text, on in pieces if on] == ["SELECT 0;<|im_end|>", "SELECT 0 FROM customers;<|im_end|>"]
