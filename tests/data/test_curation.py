"""Every row is kept or counted; what is held out is never trained on; old rows stay where they are."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curated_by_hand import ALL_TRAIN, answers, curated, dropped, extras, kept_ids, prompts, questions, row

from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.chat_checks import no_split_leakage, roles_alternate
from llm_assets.data.chat_dataset import NoConversationKept, build_chat_dataset
from llm_assets.data.chat_rows import CHAT
from llm_assets.data.formats import AlpacaFormat, ShareGPTFormat, required_columns
from llm_assets.data.funnel import funnel
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS

FOX = "the quick brown fox jumps over the lazy dog near the old river bank at dawn while two owls watch from a tree "


def test_rows_keep_their_order_messages_and_extras(tmp_path: Path):
    chat, report = curated(tmp_path, [row("a", "b", level=3), row("c", "d", level=None)], keep_columns=("level",))
    table = pq.read_table(chat / "train.parquet")
    assert table.schema == CHAT
    assert table["messages"][0].as_py() == [message("user", "a"), message("assistant", "b")]
    assert extras(chat) == [{"level": 3}, {"level": None}]
    assert (report["ingested"], report["kept"], report["dropped"]) == (2, 2, {})
    assert report["splits"] == {"train": 2, "validation": 0, "test": 0}
    assert json.loads((chat / "report.json").read_text()) == report


def test_every_dropped_row_has_its_reason_and_an_excerpt(tmp_path: Path):
    rows = [
        row("keep me", score=5),
        row("", score=5),
        row("far too long " * 50, score=5),
        row("  KEEP   me ", "YES", score=5),
        row("low score", score=1),
        row("no score", score=None),
    ]
    chat, report = curated(tmp_path, rows, CurationConfig(where="score > 3", length={"max_chars": 100}))
    assert {row_id: reason for row_id, (reason, _) in dropped(chat).items()} == {
        "r1": "empty_turn",
        "r2": "too_long_chars",
        "r3": "duplicate",
        "r4": "where",
        "r5": "where",
    }
    assert dropped(chat)["r3"][1] == "of r0" and kept_ids(chat) == ["r0"]
    assert sum(report["dropped"].values()) + report["kept"] == len(rows) == report["ingested"]
    excerpts = {r["row_id"]: r["excerpt"] for r in pq.read_table(chat / "dropped.parquet").to_pylist()}
    assert excerpts["r3"] == "user: KEEP me | assistant: YES" and "low score" in excerpts["r4"]


def test_the_funnel_leads_from_the_rows_ingested_to_those_kept(tmp_path: Path):
    rows = [*questions(20), *questions(3), row(" "), row("x" * 999)]
    _, report = curated(tmp_path, rows, CurationConfig(length={"max_chars": 500}))
    lines = funnel(report)
    assert [(line["step"], line["rows_left"]) for line in lines] == [
        ("ingested", 25),
        ("readable", 24),
        ("length", 23),
        ("equal rows", 20),
    ]
    assert lines[-1]["rows_left"] == report["kept"]


def test_near_duplicates_are_dropped_only_when_asked_for(tmp_path: Path):
    rows = [row(FOX + "today"), row(FOX + "now"), row("something else entirely")]
    assert curated(tmp_path, rows)[1]["kept"] == 3
    chat, report = curated(tmp_path, rows, CurationConfig(near_duplicates={"similarity": 0.6}))
    assert report["dropped"] == {"near_duplicate": 1} and dropped(chat)["r1"] == ("near_duplicate", "of r0")


def test_a_shared_system_message_makes_no_near_duplicates(tmp_path: Path):
    rows = [row("first question", "one"), row("another topic", "two")]
    _, report = curated(tmp_path, rows, CurationConfig(near_duplicates={"similarity": 0.3}), system=FOX * 3)
    assert report["kept"] == 2


def test_a_training_row_that_asks_a_held_out_question_is_dropped(tmp_path: Path):
    rows = [
        row("Same  question", "a", part="test"),
        row("same question", "b", part="train"),
        row("other", part="train"),
    ]
    chat, report = curated(tmp_path, rows, split=SplitConfig(split_column="part"))
    assert report["dropped"] == {"contaminated": 1} and dropped(chat)["r1"][1] == "asks what r0 of test asks"
    assert prompts(chat, "train") == ["other"] and prompts(chat, "test") == ["Same  question"]


def test_of_two_equal_rows_the_held_out_one_is_kept(tmp_path: Path):
    rows = [row("q", part="train"), row("other", part="train"), row("q", part="test")]
    chat, _ = curated(tmp_path, rows, split=SplitConfig(split_column="part"))
    assert prompts(chat, "test") == ["q"] and prompts(chat, "train") == ["other"]


def test_of_two_alike_rows_the_held_out_one_is_kept(tmp_path: Path):
    rows = [row(FOX + "today", part="train"), row("other", part="train"), row(FOX + "now", part="test")]
    for action in ("drop", "keep_together"):
        curation = CurationConfig(near_duplicates={"similarity": 0.6, "action": action})
        chat, _ = curated(tmp_path, rows, curation, SplitConfig(split_column="part"))
        assert kept_ids(chat, "test") == ["r2"] and kept_ids(chat) == ["r1"]


def test_a_rerun_writes_the_same_bytes(tmp_path: Path):
    curation = CurationConfig(near_duplicates={"similarity": 0.7})
    files = []
    for _ in range(2):
        chat, _ = curated(tmp_path, questions(300), curation, SplitConfig(validation=0.2, test=0.2))
        files.append({p.name: p.read_bytes() for p in chat.iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"train.parquet", "validation.parquet", "test.parquet", "dropped.parquet", "report.json"}


def test_several_processes_write_the_same_bytes(tmp_path: Path):
    rows = [*questions(3000), *questions(50), row(" "), row("mail a@example.org"), row("nothing", "no")]
    curation = {"near_duplicates": {}, "pii": {}, "where": "completion <> 'no'"}
    files, reports = [], []
    for processes in (1, 2):
        chat, report = curated(tmp_path, rows, CurationConfig(**curation, processes=processes), SplitConfig())
        files.append({p.name: p.read_bytes() for p in chat.iterdir()})
        reports.append(report)
    assert files[0] == files[1] and reports[0] == reports[1]
    assert reports[0]["pii"] == {"email": 1} and reports[0]["dropped"]["where"] == 1


def test_appended_rows_change_no_kept_row(tmp_path: Path):
    curation = CurationConfig(near_duplicates={"similarity": 0.7})
    split = SplitConfig(validation=0.2, test=0.2)
    rows = questions(220)
    for n in range(200, 220):
        rows[n] = {**rows[n - 200], "prompt": rows[n - 200]["prompt"] + " again"}
    before, after = (
        {s: pq.read_table(curated(tmp_path, rows[:count], curation, split)[0] / f"{s}.parquet") for s in SPLITS}
        for count in (200, 220)
    )
    assert all(after[s].slice(0, before[s].num_rows).equals(before[s]) for s in SPLITS)


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path: Path):
    with pytest.raises(NoConversationKept, match=r"empty_turn.*First: row r0 of rows"):
        curated(tmp_path, [row(""), row(" ")])
    with pytest.raises(NoConversationKept, match="'where': 2"):
        curated(tmp_path, questions(2), CurationConfig(where="length(prompt) < 3"))


def test_a_dropped_row_names_the_file_and_line_it_was_read_from(tmp_path: Path):
    rows = [row("", source_file="a.jsonl", source_line=7), row("q", source_file="b.csv", source_line=2)]
    chat, _ = curated(tmp_path, [*rows, rows[1]])
    places = pq.read_table(chat / "dropped.parquet")["place"].to_pylist()
    assert places == ["a.jsonl:7", "b.csv:2"]
    with pytest.raises(NoConversationKept, match=r"First: row r0 of a\.jsonl:7, empty_turn"):
        curated(tmp_path, rows[:1])


def test_half_a_surrogate_pair_is_counted_not_a_crash(tmp_path: Path):
    call = '[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": "\\ud83d"}}]}]'
    chat, _ = curated(tmp_path, [row("q", call), row("fine")])
    assert dropped(chat)["r0"][0] == "not_unicode" and kept_ids(chat) == ["r1"]


def test_a_huge_row_and_a_long_conversation_pass(tmp_path: Path):
    turns = [{"role": r, "content": f"turn {n}"} for n in range(20_000) for r in ("user", "assistant")]
    rows = [row("x" * 10_000_000), row(json.dumps(turns[:-1]), "the end"), row("short")]
    chat, report = curated(tmp_path, rows, CurationConfig(near_duplicates={}))
    assert report["kept"] == 3 and answers(chat)[1] == "the end"


def test_real_conversations_are_kept(tmp_path: Path, real_rows):
    for name, format, least in (
        ("alpaca_en_demo.json", AlpacaFormat(), 980),
        ("glaive_toolcall_en_demo.json", ShareGPTFormat(), 262),
    ):
        raw, out = tmp_path / f"raw_{name}", tmp_path / f"chat_{name}"
        raw.mkdir()
        out.mkdir()
        ingest([SourceConfig(path=str(real_rows(name)))], required_columns(format), raw, log=lambda _: None)
        curation = CurationConfig(
            language={"keep": ["en"]}, charset={}, repetition={}, near_duplicates={}, pii={"kinds": ["secret"]}
        )
        report = build_chat_dataset(raw / ROWS, out, format, curation, SplitConfig(), log=lambda _: None)
        assert report["kept"] >= least * 0.93, report["dropped"]
        assert roles_alternate(out).passed
        assert no_split_leakage(out, 0.9, 0.2).passed


def test_rows_of_one_group_stay_in_one_split(tmp_path: Path):
    rows = [row(f"{q['prompt']} {n}", group=f"g{n % 40}") for n, q in enumerate(questions(400))]
    chat, _ = curated(tmp_path, rows, split=SplitConfig(validation=0.2, test=0.2, group_column="group"))
    groups = {s: {int(p.split()[-1]) % 40 for p in prompts(chat, s)} for s in SPLITS}
    assert sum(len(g) for g in groups.values()) == len(set().union(*groups.values())) == 40


def test_rows_without_a_group_are_groups_of_their_own(tmp_path: Path):
    rows = [{**q, "group": None} for q in questions(200)] + [row("x", group="g")]
    chat, _ = curated(tmp_path, rows, split=SplitConfig(validation=0.2, test=0.2, group_column="group"))
    sizes = Counter({s: len(kept_ids(chat, s)) for s in SPLITS})
    assert min(sizes.values()) > 15
    assert curated(tmp_path, rows, split=ALL_TRAIN)[1]["kept"] == 201
