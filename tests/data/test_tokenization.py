"""Files, packs and numbers of a tokenized dataset, and what becomes of rows that are too long."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_families import CHATML, CHATML_SPECIALS, template
from chat_rows_by_hand import two_turns, write_split, write_two_turn_chat
from pydantic import ValidationError

from llm_assets.data import TokenizationConfig
from llm_assets.data.chat_template import TemplateMissing
from llm_assets.data.formats import ShareGPTFormat
from llm_assets.data.formats import conversation as sharegpt_conversation
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS
from llm_assets.data.template_parity import template_parity, transformers_ids
from llm_assets.data.token_checks import eos_supervised, label_mask, supervised_sample, truncation_share
from llm_assets.data.token_config import TokenCheckConfig
from llm_assets.data.token_files import COLUMNS, TokenFile, TokensUnreadable, read_tokens, token_schema, write_rows
from llm_assets.data.token_samples import sampled_rows
from llm_assets.data.tokenization import NothingTokenized, tokenize_dataset
from llm_assets.data.tokenizer_files import TokensMissing
from llm_assets.data.truncation import RowsTooLong

BOUNDS = TokenCheckConfig()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_two_turn_chat(tmp_path_factory.mktemp("chat"))


def tokenized(chat: Path, base: Path, out: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    out.mkdir()
    return out, tokenize_dataset(chat, base, out, TokenizationConfig(**config), log=lambda _: None)


@pytest.fixture(scope="module")
def sound(chat: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return tokenized(chat, tiny_base, tmp_path_factory.mktemp("sound") / "tokens", max_length_tokens=128)


def test_the_layout_and_its_numbers_agree(sound: tuple[Path, dict[str, Any]]):
    out, statistics = sound
    train = TokenFile(out, "train")
    assert train.schema.names == list(COLUMNS) and train.schema.field("input_ids").type.value_type == "uint16"
    assert statistics["rows"] == {"train": 60, "validation": 12, "test": 12}
    assert statistics["tokens"] == train.lengths.sum() == sum(len(train.ids(row)) for row in range(60))
    assert statistics["supervised_tokens"] == sum(int((train.labels(row) != -100).sum()) for row in range(60))
    assert statistics["splits"]["test"]["tokens"] == TokenFile(out, "test").lengths.sum()
    assert statistics["longest_rows"][0]["tokens"] == statistics["longest_row_tokens"] == train.lengths.max()
    assert sum(statistics["histogram"]["rows"]) == sum(statistics["splits"]["train"]["bins"]["total"]) == 60
    assert json.loads((out / "statistics.json").read_text()) == statistics
    assert {p.name for p in (out / "tokenizer").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_characters_per_token_are_those_of_the_rendered_text(sound: tuple[Path, dict[str, Any]]):
    out, statistics = sound
    ((_, pieces),) = supervised_sample(out, rows=1)
    row = read_tokens(out, "train", ["characters", "prompt_tokens", "supervised_tokens"], [0]).to_pylist()[0]
    assert row["characters"] == sum(len(text) for text, _ in pieces)
    assert 1 < statistics["characters_per_token"] < 6


def test_reading_a_row_copies_nothing_out_of_the_file(sound: tuple[Path, dict[str, Any]]):
    ids = TokenFile(sound[0], "train").ids(7)
    assert ids.dtype == np.uint16 and not ids.flags.owndata and not ids.flags.writeable


def test_ids_take_the_smallest_integers_that_hold_the_vocabulary():
    assert token_schema(65_536).field("input_ids").type.value_type == "uint16"
    assert token_schema(65_537).field("input_ids").type.value_type == "int32"


def test_rows_written_by_hand_read_back_with_their_labels(tmp_path: Path):
    rows = [
        {"row_id": "a", "input_ids": [1, 2, 3, 70_000], "labels": [-100, 2, -100, 70_000], "prompt_tokens": 1},
        {"row_id": "b", "input_ids": [5], "labels": [-100], "prompt_tokens": 1},
    ]
    write_rows(tmp_path, "train", rows)
    assert read_tokens(tmp_path, "train", list(rows[0])).to_pylist() == rows
    assert read_tokens(tmp_path, "train", ["row_id"], [1])["row_id"].to_pylist() == ["b"]
    with pytest.raises(TokensUnreadable, match=r"test\.arrow does not exist"):
        TokenFile(tmp_path, "test")


def test_packs_hold_each_training_row_once_within_their_capacity(chat: Path, tiny_base: Path, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "t", max_length_tokens=128, pack_length_tokens=300)
    lengths = TokenFile(out, "train").lengths
    packs = pq.read_table(out / "packs.parquet").to_pylist()
    assert sorted(row for pack in packs for row in pack["rows"]) == list(range(60))
    assert all(np.diff(pack["boundaries"]).tolist() == lengths[pack["rows"]].tolist() for pack in packs)
    assert all(pack["boundaries"][-1] <= 300 for pack in packs)
    assert statistics["packing_efficiency"] == pytest.approx(lengths.sum() / (len(packs) * 300))


def test_real_instructions_pack_to_more_than_995_per_mille(real_rows, make_tokenizer, tmp_path: Path):
    rows = json.loads(real_rows("alpaca_en_demo.json").read_text())
    asked = [[message("user", f"{r['instruction']}\n{r['input']}"), message("assistant", r["output"])] for r in rows]
    for split, part in zip(SPLITS, (asked, asked[:9], asked[:9]), strict=True):
        write_split(tmp_path, split, part)
    base = make_tokenizer(template("chatml"), CHATML_SPECIALS, **CHATML)
    _, statistics = tokenized(tmp_path, base, tmp_path / "t", max_length_tokens=2048)
    assert statistics["packing_efficiency"] >= 0.995


def test_a_rerun_and_several_processes_write_the_same_bytes(chat: Path, tiny_base: Path, sound, tmp_path: Path):
    again, _ = tokenized(chat, tiny_base, tmp_path / "again", max_length_tokens=128, processes=2)
    for path in sound[0].rglob("*.*"):
        assert (again / path.relative_to(sound[0])).read_bytes() == path.read_bytes(), path.name


def test_rows_over_the_limit_are_dropped_whole_or_refused(chat: Path, tiny_base: Path, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "a", max_length_tokens=80)
    kept = TokenFile(out, "train").lengths
    assert 0 < len(kept) < 60 and kept.max() <= 80
    dropped = pq.read_table(out / "dropped.parquet").to_pylist()
    assert len(dropped) == statistics["dropped_too_long"] == 84 - sum(statistics["rows"].values())
    assert not truncation_share(statistics, BOUNDS).passed
    with pytest.raises(RowsTooLong, match=r"Row train\d+ of train has \d+ tokens, at most 80.*max_length_tokens"):
        tokenized(chat, tiny_base, tmp_path / "b", max_length_tokens=80, too_long="refuse")
    with pytest.raises(NothingTokenized, match="too_long"):
        tokenized(chat, tiny_base, tmp_path / "c", max_length_tokens=8)


def test_the_oldest_turns_are_cut_and_every_answer_left_keeps_its_end(tiny_base: Path, tmp_path: Path):
    system = message("system", "Answer in SQL.")
    for split in SPLITS:
        long = [system, *(turn for n in range(6) for turn in two_turns(split, n))]
        write_split(
            tmp_path, split, [two_turns(split, 1), long, [message("user", "x " * 500), message("assistant", "y")]]
        )
    out, statistics = tokenized(tmp_path, tiny_base, tmp_path / "t", max_length_tokens=200, too_long="cut_oldest_turns")
    whole, cut = read_tokens(out, "train", ["cut_messages", "input_ids", "spans"]).to_pylist()
    assert whole["cut_messages"] == 0 and cut["cut_messages"] % 2 == 0 and cut["cut_messages"] > 0
    assert 100 < len(cut["input_ids"]) <= 200
    text = supervised_sample(out, rows=2)[1][1]
    assert text[0][0].startswith("<|im_start|>system\nAnswer in SQL.<|im_end|>")
    said = [piece for piece, on in text if on]
    assert all(piece.endswith("<|im_end|>") for piece in said) and said[-1] == "SELECT 5 FROM customers;<|im_end|>"
    assert statistics["cut_rows"] == 3 and statistics["dropped"] == {"too_long": 3}
    assert statistics["truncated_share"] == pytest.approx(6 / 9)
    detail = pq.read_table(out / "dropped.parquet")["detail"][0].as_py()
    assert "its last question and answer still too many" in detail
    assert label_mask(out, tmp_path, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed
    samples = list(sampled_rows(out, tmp_path, 5))
    assert template_parity(samples, *[transformers_ids(out / "tokenizer", samples)] * 2).passed


def test_a_row_of_ten_megabytes_is_left_out_unread(tiny_base: Path, chat: Path, tmp_path: Path):
    huge = [message("user", "a" * 10_000_000), message("assistant", "b")]
    for split in SPLITS:
        write_split(tmp_path, split, [two_turns(split, 1), huge])
    for name, policy in (("a", "drop"), ("b", "cut_oldest_turns")):
        out, statistics = tokenized(tmp_path, tiny_base, tmp_path / name, max_length_tokens=128, too_long=policy)
        assert statistics["dropped"] == {"too_long": 3}
        assert "10000001 characters" in pq.read_table(out / "dropped.parquet")["detail"][0].as_py()


def test_packs_shorter_than_rows_are_refused():
    with pytest.raises(ValidationError, match="pack_length_tokens 64 is below max_length_tokens 128"):
        TokenizationConfig(max_length_tokens=128, pack_length_tokens=64)


def test_the_last_turn_alone_can_be_supervised(chat: Path, tiny_base: Path, sound, tmp_path: Path):
    out, statistics = tokenized(chat, tiny_base, tmp_path / "t", max_length_tokens=128, supervise="last_turn")
    assert statistics["supervised_tokens"] < sound[1]["supervised_tokens"]
    assert label_mask(out, chat, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed


def test_rows_whose_template_raises_are_counted_with_its_words(make_tokenizer, tmp_path: Path):
    source = "{% if 'odd' in messages[0].content %}{{ raise_exception('I take no odd rows') }}{% endif %}" + template(
        "chatml"
    )
    base = make_tokenizer(source, CHATML_SPECIALS, **CHATML)
    odd = [message("user", "an odd question"), message("assistant", "no")]
    for split in SPLITS:
        write_split(tmp_path, split, [two_turns(split, 1), odd])
    out, statistics = tokenized(tmp_path, base, tmp_path / "t")
    assert statistics["dropped"] == {"template_refused": 3}
    assert pq.read_table(out / "dropped.parquet").to_pylist()[0] == {
        "row_id": "train1",
        "split": "train",
        "reason": "template_refused",
        "detail": "I take no odd rows",
    }
    assert not label_mask(out, tmp_path, statistics, BOUNDS).passed  # a third of the rows


def test_a_base_without_a_template_is_given_chatml(chat: Path, make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, CHATML_SPECIALS, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    with pytest.raises(TemplateMissing, match="chatml"):
        tokenized(chat, base, tmp_path / "a")
    out, statistics = tokenized(chat, base, tmp_path / "b", template="chatml")
    settings = json.loads((out / "tokenizer" / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|im_end|>" and statistics["end_of_turn_tokens"] == ["<|im_end|>"]


def test_chatml_on_a_tokenizer_without_its_tokens_is_refused(chat: Path, make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, ("<s>", "</s>"), eos_token="</s>")
    with pytest.raises(TokensMissing, match=r"<\|im_start\|>"):
        tokenized(chat, base, tmp_path / "a", template="chatml")
    with pytest.raises(TokensMissing, match="no file"):
        tokenized(chat, base, tmp_path / "b", template="chatlm")


def test_built_in_chatml_renders_tools_and_calls(make_tokenizer, tmp_path: Path):
    base = make_tokenizer(None, CHATML_SPECIALS, **CHATML)
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
        write_split(tmp_path, split, [turns], tools)
    out, statistics = tokenized(tmp_path, base, tmp_path / "t", template="chatml")
    ((_, pieces),) = supervised_sample(out)
    assert [text for text, on in pieces if on] == [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call><|im_end|>',
        "Sunny.<|im_end|>",
    ]
    assert pieces[0][0].count("<|im_start|>system") == 1
    assert label_mask(out, tmp_path, statistics, BOUNDS).passed


def test_real_tool_conversations_tokenize_exactly(real_rows, make_tokenizer, tmp_path: Path):
    rows = json.loads(real_rows("glaive_toolcall_en_demo.json").read_text())[:60]
    found = [sharegpt_conversation(row, ShareGPTFormat()) for row in rows]
    tools = found[0].tools
    for split, part in zip(SPLITS, (found[:40], found[40:50], found[50:]), strict=True):
        write_split(tmp_path, split, [made.messages for made in part], tools)
    base = make_tokenizer(template("qwen_2_5"), CHATML_SPECIALS, **CHATML)
    out, statistics = tokenized(tmp_path, base, tmp_path / "t", max_length_tokens=8192)
    assert statistics["rows"]["train"] >= 39
    assert label_mask(out, tmp_path, statistics, BOUNDS).passed
    assert eos_supervised(out, statistics["end_of_turn_ids"]).passed
    samples = list(sampled_rows(out, tmp_path, 10))
    assert template_parity(samples, *[transformers_ids(out / "tokenizer", samples)] * 2).passed
