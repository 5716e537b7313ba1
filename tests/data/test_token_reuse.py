"""Rows that did not change keep their tokens, and the result is that of a full rebuild, byte for byte."""

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_rows_by_hand import two_turns, write_split, write_two_turn_chat

from llm_assets.data import TokenizationConfig, tokenizer_files
from llm_assets.data.chat_rows import CHAT
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS
from llm_assets.data.token_reuse import conversation_digests
from llm_assets.data.tokenization import tokenize_dataset


def tokenized(chat: Path, base: Path, out: Path, published: Path | None = None, **config: Any) -> int:
    """Tokenize; returns how many rows kept their tokens."""
    lines: list[str] = []
    out.mkdir()
    tokenize_dataset(
        chat, base, out, TokenizationConfig(**{"max_length_tokens": 128, **config}), lines.append, published
    )
    kept = [line for line in lines if "keep the tokens" in line]
    return int(kept[0].split()[0]) if kept else 0


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("published")
    tokenized(write_two_turn_chat(home / "chat"), tiny_base, home / "tokens")
    return home / "tokens"


def changed_chat(directory: Path) -> Path:
    """Two new rows, one changed answer, one row gone, one moved to another split, one too long."""
    train = [two_turns("train", n) for n in range(60) if n != 5]
    train[3] = two_turns("train", 3, answer="SELECT {n} AS changed;")
    long = [message("user", "x " * 400), message("assistant", "y")]
    write_split(directory, "train", [two_turns("new", 1), *train[:30], long, two_turns("new", 2), *train[30:]])
    write_split(directory, "validation", [two_turns("train", 5), *(two_turns("validation", n) for n in range(12))])
    write_split(directory, "test", [two_turns("test", n) for n in range(12)])
    return directory


def test_only_what_changed_is_encoded_and_the_bytes_are_those_of_a_full_rebuild(published, tiny_base, tmp_path: Path):
    chat = changed_chat(tmp_path / "chat")
    tokenized(chat, tiny_base, tmp_path / "full")
    assert tokenized(chat, tiny_base, tmp_path / "reused", published) == 58 + 13 + 12
    for path in (tmp_path / "full").rglob("*.*"):
        assert (tmp_path / "reused" / path.relative_to(tmp_path / "full")).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("change", [{"supervise": "last_turn"}, {"max_length_tokens": 100}, {"template": "chatml"}])
def test_other_settings_or_another_template_keep_nothing(published, tiny_base, tmp_path: Path, change):
    chat = write_two_turn_chat(tmp_path / "chat")
    assert tokenized(chat, tiny_base, tmp_path / "same", published) == 84
    assert tokenized(chat, tiny_base, tmp_path / "other", published, **change) == 0


@pytest.mark.parametrize("package", ["tokenizers", "jinja2"])
def test_another_release_of_what_renders_and_encodes_keeps_nothing(
    published, tiny_base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
):
    chat = write_two_turn_chat(tmp_path / "chat")
    monkeypatch.setattr(tokenizer_files, "version", lambda name: "next" if name == package else version(name))
    assert tokenized(chat, tiny_base, tmp_path / "other", published) == 0


def test_another_tokenizer_keeps_nothing(published, tiny_base, tmp_path: Path):
    chat, base = write_two_turn_chat(tmp_path / "chat"), tmp_path / "base"
    shutil.copytree(tiny_base, base)
    stored = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(stored + "\n")
    assert tokenized(chat, base, tmp_path / "t", published) == 0


def test_a_dataset_published_in_an_older_layout_is_no_reason_to_stop(published, tiny_base, tmp_path: Path):
    older = tmp_path / "older"
    shutil.copytree(published, older)
    for split in SPLITS:
        (older / f"{split}.arrow").unlink()
    assert tokenized(write_two_turn_chat(tmp_path / "chat"), tiny_base, tmp_path / "t", older) == 0


def digests(*conversations: tuple[list[dict[str, Any]], str | None]) -> list[bytes]:
    rows = [{"row_id": "r", "messages": messages, "tools": tools, "extras": ""} for messages, tools in conversations]
    return conversation_digests(pa.RecordBatch.from_pylist(rows, CHAT))


def test_conversations_share_a_digest_only_when_they_are_the_same():
    asked, said = message("user", "a"), message("assistant", "bc")
    different = digests(
        ([asked, said], None),
        ([message("user", "ab"), message("assistant", "c")], None),
        ([asked, said], "[]"),
        ([asked, said, asked, said], None),
        ([asked, message("assistant", "bc", tool_calls="")], None),
        ([asked, message("assistant", "", tool_calls="bc")], None),
        ([message("user", ""), message("assistant", "abc")], None),
    )
    assert len(set(different)) == 7
    assert digests(([asked, said], None)) == different[:1]


def test_digests_do_not_depend_on_where_a_row_lies_in_its_file(tmp_path: Path):
    write_split(tmp_path, "train", [two_turns("é日", n) for n in range(50)])
    file = pq.ParquetFile(tmp_path / "train.parquet")
    columns = ["row_id", "messages", "tools"]
    whole = [d for batch in file.iter_batches(50, columns=columns) for d in conversation_digests(batch)]
    parts = [d for batch in file.iter_batches(7, columns=columns) for d in conversation_digests(batch)]
    sliced = conversation_digests(next(file.iter_batches(50, columns=columns)).slice(10, 5))
    assert whole == parts and sliced == whole[10:15]
