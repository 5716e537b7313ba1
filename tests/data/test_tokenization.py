"""Tokens, packs and statistics of a dataset, and each check with the breakage it exists for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm_assets.data import TokenizationConfig
from llm_assets.data.chat_dataset import CHAT
from llm_assets.data.chat_template import TemplateMissing
from llm_assets.data.formats import ShareGPTFormat
from llm_assets.data.formats import conversation as sharegpt_conversation
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS
from llm_assets.data.token_checks import (
    TokenCheckConfig,
    eos_supervised,
    label_mask,
    special_tokens_sound,
    supervised_sample,
    template_parity,
    token_stats,
    truncation_share,
)
from llm_assets.data.tokenization import TOKENS, NothingTokenized, RowsTooLong, TokensMissing, tokenize_dataset

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOUNDS = TokenCheckConfig()


def template(name: str) -> str:
    """A chat template in the manner of a model family, shortened to what decides token ids."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations of two turns each: 60 to train, 12 for each held-out split."""
    directory = tmp_path_factory.mktemp("chat")
    for split, rows in zip(SPLITS, (60, 12, 12), strict=True):
        write_split(directory, split, [conversation(split, n) for n in range(rows)])
    return directory


def conversation(split: str, n: int) -> list[dict[str, Any]]:
    return [
        message("user", f"how many orders of {split} {n}? " + "really " * (n % 7)),
        message("assistant", f"SELECT {n};"),
        message("user", "and customers?"),
        message("assistant", f"SELECT {n} FROM customers;"),
    ]


def write_split(directory: Path, split: str, conversations: list[list[dict[str, Any]]]) -> None:
    rows = [
        {"row_id": f"{split}{n}", "messages": messages, "tools": None, "extras": "{}"}
        for n, messages in enumerate(conversations)
    ]
    pq.write_table(pa.Table.from_pylist(rows, CHAT), directory / f"{split}.parquet")


def tokenized(chat: Path, base: Path, out: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    out.mkdir()
    return out, tokenize_dataset(chat, base, out, TokenizationConfig(**config), log=lambda _: None)


@pytest.fixture(scope="module")
def sound(chat: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return tokenized(chat, tiny_base, tmp_path_factory.mktemp("sound") / "tokens", max_length_tokens=128)


@pytest.fixture
def broken(sound: tuple[Path, dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    """Copy the sound dataset with one training row's ids and labels replaced."""

    def edit(change: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(sound[0], tmp_path / "broken")
        rows = pq.read_table(tmp_path / "broken" / "train.parquet").to_pylist()
        change(rows[0])
        pq.write_table(pa.Table.from_pylist(rows, TOKENS), tmp_path / "broken" / "train.parquet")
        return tmp_path / "broken"

    return edit


def test_the_layout_and_its_numbers_agree(sound: tuple[Path, dict[str, Any]]):
    out, statistics = sound
    train = pq.read_table(out / "train.parquet")
    assert train.schema == TOKENS
    assert statistics["rows"] == {"train": 60, "validation": 12, "test": 12}
    assert statistics["tokens"] == sum(len(ids) for ids in train["input_ids"].to_pylist())
    assert statistics["supervised_tokens"] == sum(train["supervised_tokens"].to_pylist())
    assert sum(statistics["histogram"]["rows"]) == 60
    assert json.loads((out / "statistics.json").read_text()) == statistics
    assert {p.name for p in (out / "tokenizer").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_packs_hold_each_training_row_once_within_their_capacity(chat: Path, tiny_base: Path, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "t", max_length_tokens=128, pack_length_tokens=300)
    lengths = [len(ids) for ids in pq.read_table(out / "train.parquet")["input_ids"].to_pylist()]
    packs = pq.read_table(out / "packs.parquet")["rows"].to_pylist()
    assert sorted(np.concatenate(packs).tolist()) == list(range(60))
    assert all(sum(lengths[row] for row in pack) <= 300 for pack in packs)
    assert statistics["packing_efficiency"] == pytest.approx(sum(lengths) / (len(packs) * 300))


def test_a_rerun_writes_the_same_bytes(chat: Path, tiny_base: Path, sound, tmp_path: Path):
    again, _ = tokenized(chat, tiny_base, tmp_path / "again", max_length_tokens=128)
    for path in sound[0].rglob("*.*"):
        assert (again / path.relative_to(sound[0])).read_bytes() == path.read_bytes(), path.name


def test_rows_over_the_limit_are_dropped_whole_or_refused(chat: Path, tiny_base: Path, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "a", max_length_tokens=80)
    kept = pq.read_table(out / "train.parquet")["input_ids"].to_pylist()
    assert 0 < len(kept) < 60 and max(map(len, kept)) <= 80
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    assert len(dropped) == statistics["dropped_too_long"] == 84 - sum(statistics["rows"].values())
    with pytest.raises(RowsTooLong, match="max_length_tokens"):
        tokenized(chat, tiny_base, tmp_path / "b", max_length_tokens=80, too_long="refuse")
    with pytest.raises(NothingTokenized, match="too_long"):
        tokenized(chat, tiny_base, tmp_path / "c", max_length_tokens=8)


def test_packs_shorter_than_rows_are_refused():
    with pytest.raises(ValidationError, match="pack_length_tokens 64 is below max_length_tokens 128"):
        TokenizationConfig(max_length_tokens=128, pack_length_tokens=64)


def test_the_last_turn_alone_can_be_supervised(chat: Path, tiny_base: Path, sound, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "t", max_length_tokens=128, supervise="last_turn")
    assert statistics["supervised_tokens"] < sound[1]["supervised_tokens"]
    assert label_mask(out, chat, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed


def test_a_base_without_a_template_is_given_chatml(chat: Path, make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, CHATML_SPECIALS, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    with pytest.raises(TemplateMissing, match="chatml"):
        tokenized(chat, base, tmp_path / "a")
    out, statistics = tokenized(chat, base, tmp_path / "b", template="chatml")
    settings = json.loads((out / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>" and statistics["end_of_turn_tokens"] == ["<|im_end|>"]
    assert template_parity(out, chat, 5).passed


def test_chatml_on_a_tokenizer_without_its_tokens_is_refused(chat: Path, make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, ("<s>", "</s>"), eos_token="</s>")
    with pytest.raises(TokensMissing, match=r"<\|im_start\|>"):
        tokenized(chat, base, tmp_path / "a", template="chatml")
    with pytest.raises(TokensMissing, match="no file"):
        tokenized(chat, base, tmp_path / "b", template="chatlm")


def test_built_in_chatml_renders_tools_and_calls(make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, CHATML_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    call = json.dumps([{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}])
    tools = json.dumps([{"type": "function", "function": {"name": "get_weather", "parameters": {}}}])
    turns = [
        message("system", "Be brief."),
        message("user", "Weather?"),
        message("assistant", "", tool_calls=call),
        message("tool", "sunny"),
        message("assistant", "Sunny."),
    ]
    for split in SPLITS:
        rows = [{"row_id": "r", "messages": turns, "tools": tools, "extras": "{}"}]
        pq.write_table(pa.Table.from_pylist(rows, CHAT), tmp_path / f"{split}.parquet")
    out, statistics = tokenized(tmp_path, base, tmp_path / "t", template="chatml")
    ((_, pieces),) = supervised_sample(out)
    assert [text for text, on in pieces if on] == [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>',
        "Sunny.<|im_end|>",
    ]
    assert pieces[0][0].count("<|im_start|>system") == 1
    assert template_parity(out, tmp_path, 1).passed and label_mask(out, tmp_path, statistics, BOUNDS).passed


def test_real_tool_conversations_tokenize_exactly(real_rows, make_tokenizer, tmp_path: Path):
    rows = json.loads(real_rows("glaive_toolcall_en_demo.json").read_text())[:60]
    found = [sharegpt_conversation(row, ShareGPTFormat()) for row in rows]
    table = [{"row_id": f"r{n}", "messages": f.messages, "tools": f.tools, "extras": "{}"} for n, f in enumerate(found)]
    for split, part in zip(SPLITS, (table[:40], table[40:50], table[50:]), strict=True):
        pq.write_table(pa.Table.from_pylist(part, CHAT), tmp_path / f"{split}.parquet")
    base = make_tokenizer(template("qwen_2_5"), CHATML_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    out, statistics = tokenized(tmp_path, base, tmp_path / "t", max_length_tokens=8192)
    assert statistics["rows"]["train"] >= 39
    assert label_mask(out, tmp_path, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed
    assert template_parity(out, tmp_path, 10).passed


def test_all_checks_pass_on_a_sound_dataset(sound: tuple[Path, dict[str, Any]], chat: Path):
    out, statistics = sound
    results = {
        "token_stats": token_stats(statistics, BOUNDS),
        "eos_supervised": eos_supervised(out, statistics["end_of_turn_ids"]),
        "label_mask": label_mask(out, chat, statistics, BOUNDS),
        "special_tokens": special_tokens_sound(out, statistics["end_of_turn_ids"]),
        "truncation_share": truncation_share(statistics, BOUNDS),
        "template_parity": template_parity(out, chat, 10),
    }
    assert {name: r.passed for name, r in results.items()} == dict.fromkeys(results, True)
    assert results["eos_supervised"].numbers["turns"] == 2 * 84
    assert results["template_parity"].numbers["rows_compared"] == 30


def test_token_stats_fails_outside_its_band_and_on_drift(sound: tuple[Path, dict[str, Any]]):
    _, statistics = sound
    mean = statistics["mean_length_tokens"]
    assert not token_stats(statistics, TokenCheckConfig(min_mean_length_tokens=mean + 1)).passed
    assert not token_stats(statistics, TokenCheckConfig(max_mean_length_tokens=mean - 1)).passed
    previous = {**statistics, "mean_length_tokens": mean * 3}
    assert not token_stats(statistics, BOUNDS, previous).passed
    assert token_stats(statistics, TokenCheckConfig(max_drift=0.7), previous).passed


def test_eos_supervised_fails_on_a_turn_whose_end_carries_no_loss(broken):
    def drop_last_label(row: dict[str, Any]) -> None:
        last = max(n for n, label in enumerate(row["labels"]) if label != -100)
        row["labels"][last] = -100

    result = eos_supervised(broken(drop_last_label), [2])
    assert not result.passed and result.numbers["turns_without_end"] == 1 and result.rows[0]["row_id"] == "train0"


def test_eos_supervised_fails_when_nothing_carries_loss(broken):
    path = broken(lambda row: row.update(labels=[-100] * len(row["labels"])))
    for split in SPLITS:
        table = pq.read_table(path / f"{split}.parquet").slice(0, 1 if split == "train" else 0)
        pq.write_table(table, path / f"{split}.parquet")
    assert not eos_supervised(path, [2]).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(labels=[-100] * len(row["labels"])),
        lambda row: row.update(labels=list(row["input_ids"])),
        lambda row: row["labels"].__setitem__(slice(0, 5), row["input_ids"][:5]),
        lambda row: row["labels"].__setitem__(len(row["labels"]) - 3, 7),
    ],
    ids=["no label", "all labelled", "user text labelled", "label of another id"],
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


def test_truncation_share_fails_when_too_many_rows_are_too_long(sound: tuple[Path, dict[str, Any]]):
    statistics = {**sound[1], "dropped": {"too_long": 16}, "dropped_too_long": 16}
    assert not truncation_share(statistics, BOUNDS).passed
    assert truncation_share(statistics, TokenCheckConfig(max_dropped_share=0.2)).passed


def test_template_parity_fails_when_ids_or_template_differ(broken, chat: Path):
    path = broken(lambda row: row["input_ids"].__setitem__(5, row["input_ids"][5] + 1))
    result = template_parity(path, chat, 10)
    assert not result.passed and result.rows[0] == {
        "split": "train",
        "row_id": "train0",
        "part": "row",
        "first_difference_at": 5,
    }
    template = path / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "assistant\n\n"))
    assert template_parity(path, chat, 10).numbers["rows_different"] == 30
