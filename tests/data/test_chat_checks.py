"""The checks of a chat dataset, each with the damage it exists for."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.chat_checks import drop_share, no_split_leakage, roles_alternate
from llm_assets.data.chat_rows import CHAT
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS

REPORT = {"ingested": 10, "kept": 6, "dropped": {"duplicate": 4}}
WORDS = [f"word{n}" for n in range(60)]


def write(chat: Path, **splits: list[list[dict[str, Any]]]) -> Path:
    for split in SPLITS:
        rows = [
            {"row_id": f"{split}{n}", "messages": m, "tools": None, "extras": "{}"}
            for n, m in enumerate(splits.get(split, []))
        ]
        pq.write_table(pa.Table.from_pylist(rows, CHAT), chat / f"{split}.parquet")
    return chat


def asked(question: str, answer: str = "yes") -> list[dict[str, Any]]:
    return [message("user", question), message("assistant", answer)]


def test_roles_passes_well_formed_turns(tmp_path: Path):
    assert roles_alternate(write(tmp_path, train=[asked("a"), asked("b") + asked("c")], test=[asked("d")])).passed


@pytest.mark.parametrize(
    "damaged",
    [
        asked("b")[::-1],
        asked("a", " "),
        asked("a")[:1],
        [message("user", "a"), *asked("b")],
        [*asked("a"), message("system", "late"), *asked("b")],
        [message("narrator", "a"), message("assistant", "b")],
    ],
    ids=["reversed", "empty", "unanswered", "twice the user", "late system", "unknown role"],
)
def test_roles_fails_on_a_conversation_that_no_template_renders_as_meant(tmp_path: Path, damaged: list[dict[str, Any]]):
    result = roles_alternate(write(tmp_path, train=[asked("a")], test=[damaged]))
    assert not result.passed and result.rows[0]["row_id"] == "test0" and result.numbers["bad_conversations"] == 1


def test_roles_fails_on_no_rows(tmp_path: Path):
    assert not roles_alternate(write(tmp_path)).passed


def test_leakage_passes_splits_that_share_nothing(tmp_path: Path):
    chat = write(tmp_path, train=[asked("a"), asked("b")], validation=[asked("c")], test=[asked("d")])
    result = no_split_leakage(chat, 0.9, 0.0)
    assert result.passed and result.numbers["held_out_rows"] == 2
    assert no_split_leakage(write(tmp_path, train=[asked("a")]), 0.9, 0.0).passed


def test_leakage_fails_on_an_equal_prompt_across_splits(tmp_path: Path):
    result = no_split_leakage(write(tmp_path, train=[asked("A  b")], test=[asked("a b", "no")]), 0.9, 1.0)
    assert not result.passed and result.numbers["exact_leaks"] == 1
    assert result.rows[0] == {"row_id": "train0", "split": "train", "also_in": "test", "as": "test0"}


def test_leakage_fails_between_the_held_out_splits_too(tmp_path: Path):
    result = no_split_leakage(write(tmp_path, train=[asked("x")], validation=[asked("a")], test=[asked("a")]), 0.9, 1.0)
    assert not result.passed and result.rows[0]["split"] == "validation"


def test_leakage_fails_on_a_row_id_in_two_splits(tmp_path: Path):
    chat = write(tmp_path, train=[asked("a")], test=[asked("b")])
    row = {"row_id": "test0", "messages": asked("c"), "tools": None, "extras": "{}"}
    pq.write_table(pa.Table.from_pylist([row], CHAT), chat / "train.parquet")
    assert not no_split_leakage(chat, 0.9, 1.0).passed


def test_leakage_fails_when_too_many_held_out_rows_nearly_repeat_training_rows(tmp_path: Path):
    text = " ".join(WORDS)
    chat = write(tmp_path, train=[asked(text + " one")], test=[asked(text + " two"), asked("quite different words")])
    result = no_split_leakage(chat, 0.8, 0.4)
    assert not result.passed and result.numbers["near_duplicate_share"] == 0.5 and result.numbers["exact_leaks"] == 0
    assert result.rows == [{"row_id": "test0", "split": "test", "also_in": "train (nearly)", "as": "train0"}]
    assert no_split_leakage(chat, 0.8, 0.5).passed
    assert no_split_leakage(chat, 1.0, 0.0).passed


def test_leakage_compares_every_row_of_a_large_split(tmp_path: Path):
    train = [asked(f"{' '.join(f'{w}{n}' for w in WORDS[:12])}") for n in range(3000)]
    like = [asked(train[n][0]["content"] + " please") for n in (0, 1500, 2999)]
    result = no_split_leakage(write(tmp_path, train=train, test=like), 0.6, 0.5)
    assert result.numbers["near_duplicates"] == 3


def test_drop_share_fails_when_too_many_rows_went():
    assert drop_share(REPORT, 0.4).passed
    result = drop_share(REPORT, 0.3)
    assert not result.passed and result.rows == [{"reason": "duplicate", "rows": 4}]


def test_drop_share_fails_when_a_row_is_unaccounted_for():
    result = drop_share({**REPORT, "kept": 5}, 0.5)
    assert not result.passed and result.numbers["unaccounted"] == 1


def test_leakage_fails_on_a_group_that_stands_in_two_splits(tmp_path: Path):
    chat = write(tmp_path, train=[asked("a"), asked("b")], test=[asked("c"), asked("d")])
    raw = tmp_path / "rows.parquet"

    def leakage(*authors: str | None):
        ids = ["train0", "train1", "test0", "test1"]
        pq.write_table(pa.table({"row_id": ids, "the author": pa.array(authors, pa.string())}), raw)
        return no_split_leakage(chat, 0.9, 1.0, raw, "the author")

    assert leakage("x", "x", "y", "y").passed
    assert leakage("x", None, "y", None).passed
    torn = leakage("x", "y", "x", "z")
    assert not torn.passed and torn.numbers["torn_groups"] == 1
    assert torn.rows[0] == {"row_id": "test0", "split": "test, train", "also_in": "", "as": "the author x"}
