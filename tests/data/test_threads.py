"""Rows of single messages become the threads they belong to; what belongs to none is counted."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llm_assets.data.formats import AutoFormat, conversation
from llm_assets.data.ingestion import REFUSED_ROWS, ROWS, ingest
from llm_assets.data.nested import nested_columns, opened
from llm_assets.data.sources import SourceConfig, SourceUnreadable

TREE = [
    ("q", None, "prompter", "Hi", None),
    ("worse", "q", "assistant", "Go", 1),
    ("best", "q", "assistant", "Yo", 0),
    ("more", "best", "prompter", "More", None),
    ("end", "more", "assistant", "No", None),
]
COLUMNS = ("message_id", "parent_id", "role", "text", "rank")


def threads(home: Path, messages: list[tuple], **fields) -> list[dict]:
    """Rows of the threads, with the conversation each reads as."""
    path, out = home / "messages.jsonl", home / "out"
    path.write_text("".join(json.dumps(dict(zip(COLUMNS, message, strict=True))) + "\n" for message in messages))
    out.mkdir(exist_ok=True)
    source = {"path": str(path), "threads": {}, "max_refused_share": 1, **fields}
    ingest([SourceConfig.model_validate(source)], (), out, log=lambda _: None)
    table = pq.read_table(out / ROWS)
    rows = [opened(row, nested_columns(table.schema)) for row in table.to_pylist()]
    return [{**row, "said": [m["content"] for m in conversation(row, AutoFormat()).messages]} for row in rows]


def test_the_best_replies_make_one_thread_per_tree(tmp_path: Path):
    other = ("alone", None, "prompter", "Hello?", None)
    found = threads(tmp_path, [*reversed(TREE), other])
    assert [(row["said"], row["tree_id"], row["leaf_id"], row["source_line"]) for row in found] == [
        (["Hi", "Yo", "More", "No"], "q", "end", 5),
        (["Hello?"], "alone", "alone", 6),
    ]


def test_every_last_reply_may_make_a_thread(tmp_path: Path):
    found = threads(tmp_path, TREE, threads={"keep": "all"})
    assert sorted((row["said"], row["tree_id"]) for row in found) == [
        (["Hi", "Go"], "q"),
        (["Hi", "Yo", "More", "No"], "q"),
    ]


def test_messages_that_no_thread_holds_are_counted(tmp_path: Path):
    lost = [("x", "gone", "assistant", "?", None), ("y", "x", "prompter", "?", None)]
    circle = [("a", "b", "prompter", "?", None), ("b", "a", "assistant", "?", None)]
    again = [("q", None, "prompter", "Hi again", None)]
    assert [row["said"] for row in threads(tmp_path, TREE + lost + circle + again)] == [["Hi", "Yo", "More", "No"]]
    refused = pq.read_table(tmp_path / "out" / REFUSED_ROWS).to_pylist()
    assert [(row["line"], row["reason"]) for row in refused] == [(n, "orphan_message") for n in (6, 7, 8, 9, 10)]


def test_a_column_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SourceUnreadable, match=r"no column 'body'.*threads\.text_column"):
        threads(tmp_path, TREE, threads={"text_column": "body"})
