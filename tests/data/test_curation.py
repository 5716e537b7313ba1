"""Every row is kept or counted; what is held out is never trained on; old rows stay where they are."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.chat_checks import drop_share, no_split_leakage, roles_alternate
from llm_assets.data.chat_dataset import CHAT, NoConversationKept, build_chat_dataset
from llm_assets.data.curation import PredicateInvalid
from llm_assets.data.formats import AlpacaFormat, PromptCompletionFormat, ShareGPTFormat, required_columns
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS, SplitEmpty, SplitUnknown

ALL_TRAIN = SplitConfig(validation=0, test=0)
TOPICS = ["river", "mountain", "castle", "garden", "engine", "violin", "desert", "harbor", "library", "comet"]


def row(prompt: str, completion: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def questions(count: int) -> list[dict[str, Any]]:
    """Rows that have few words in common with one another."""
    return [row(" ".join(f"{topic}{n}" for topic in TOPICS), f"answer {n}") for n in range(count)]


def built(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    curation: CurationConfig | None = None,
    split: SplitConfig = ALL_TRAIN,
    **format: Any,
) -> tuple[Path, dict[str, Any]]:
    source, out = tmp_path / "rows.jsonl", tmp_path / "chat"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    raw = tmp_path / "raw"
    for directory in (raw, out):
        directory.mkdir(exist_ok=True)
    config = PromptCompletionFormat(**format)
    ingest([SourceConfig(path=str(source))], required_columns(config), raw, log=lambda _: None)
    report = build_chat_dataset(raw / ROWS, out, config, curation or CurationConfig(), split, log=lambda _: None)
    return out, report


def prompts(chat: Path, split: str) -> list[str]:
    return [r["messages"][-2]["content"] for r in pq.read_table(chat / f"{split}.parquet").to_pylist()]


def test_rows_keep_their_order_messages_and_extras(tmp_path: Path):
    chat, report = built(tmp_path, [row("a", "b", level=3), row("c", "d", level=None)], keep_columns=("level",))
    table = pq.read_table(chat / "train.parquet")
    assert table.schema == CHAT
    first, second = table.to_pylist()
    assert first["messages"] == [message("user", "a"), message("assistant", "b")]
    assert (json.loads(first["extras"]), json.loads(second["extras"])) == ({"level": 3}, {"level": None})
    assert report == {
        "ingested": 2,
        "kept": 2,
        "dropped": {},
        "splits": {"train": 2, "validation": 0, "test": 0},
    }


def test_every_dropped_row_has_its_reason(tmp_path: Path):
    rows = [
        row("keep me", score=5),
        row("", score=5),
        row("far too long " * 50, score=5),
        row("  KEEP   me ", "YES", score=5),
        row("low score", score=1),
        row("no score", score=None),
    ]
    chat, report = built(tmp_path, rows, CurationConfig(where="score > 3", max_chars=100))
    assert report["dropped"] == {"duplicate": 1, "empty_turn": 1, "too_long_chars": 1, "where": 2}
    dropped = pq.read_table(chat / "dropped.parquet").to_pylist()
    kept = pq.read_table(chat / "train.parquet").to_pylist()
    assert len(dropped) + len(kept) == len(rows) == report["ingested"]
    assert next(d["detail"] for d in dropped if d["reason"] == "duplicate") == f"of {kept[0]['row_id']}"


def test_near_duplicates_are_dropped_only_when_asked_for(tmp_path: Path):
    text = (
        "the quick brown fox jumps over the lazy dog near the old river bank at dawn while two owls watch from a tree "
    )
    rows = [row(text + "today"), row(text + "now"), row("something else entirely")]
    assert built(tmp_path, rows)[1]["kept"] == 3
    _, report = built(tmp_path, rows, CurationConfig(near_duplicate_similarity=0.6))
    assert report["dropped"] == {"near_duplicate": 1}


def test_a_training_row_that_asks_a_held_out_question_is_dropped(tmp_path: Path):
    rows = [
        row("Same  question", "a", part="test"),
        row("same question", "b", part="train"),
        row("other", part="train"),
    ]
    chat, report = built(tmp_path, rows, split=SplitConfig(split_column="part"))
    assert report["dropped"] == {"contaminated": 1}
    assert prompts(chat, "train") == ["other"] and prompts(chat, "test") == ["Same  question"]


def test_of_two_equal_rows_the_held_out_one_is_kept(tmp_path: Path):
    rows = [row("q", part="train"), row("other", part="train"), row("q", part="test")]
    chat, _ = built(tmp_path, rows, split=SplitConfig(split_column="part"))
    assert prompts(chat, "test") == ["q"] and prompts(chat, "train") == ["other"]


def test_a_training_row_that_quotes_a_held_out_row_is_contaminated(tmp_path: Path):
    quoted = "one two three four five six seven eight"
    rows = [row(quoted, part="test"), row(f"{quoted} nine", part="train"), row("a b c d e f", part="train")]
    chat, report = built(
        tmp_path,
        rows,
        CurationConfig(contamination_ngram_words=4, contamination_share=0.5),
        SplitConfig(split_column="part"),
    )
    assert report["dropped"] == {"contaminated": 1} and prompts(chat, "train") == ["a b c d e f"]


def test_adding_rows_never_moves_a_row_to_another_split(tmp_path: Path):
    split = SplitConfig(validation=0.2, test=0.2)
    where = {
        count: {p: s for s in SPLITS for p in prompts(built(tmp_path, questions(count)[::-1], split=split)[0], s)}
        for count in (200, 300)
    }
    assert where[200].items() <= where[300].items()
    shares = Counter(where[300].values())
    assert 30 < shares["test"] < 90 and 30 < shares["validation"] < 90


def test_rows_of_one_group_stay_in_one_split(tmp_path: Path):
    rows = [row(f"{q['prompt']} {n}", group=f"g{n % 40}") for n, q in enumerate(questions(400))]
    chat, _ = built(tmp_path, rows, split=SplitConfig(validation=0.2, test=0.2, group_column="group"))
    groups = {s: {int(p.split()[-1]) % 40 for p in prompts(chat, s)} for s in SPLITS}
    assert sum(len(g) for g in groups.values()) == len(set().union(*groups.values())) == 40


def test_another_seed_holds_out_other_rows(tmp_path: Path):
    held = [set(prompts(built(tmp_path, questions(200), split=SplitConfig(seed=s))[0], "test")) for s in (0, 1)]
    assert held[0] != held[1]


def test_a_rerun_writes_the_same_bytes(tmp_path: Path):
    curation = CurationConfig(near_duplicate_similarity=0.7)
    files = []
    for _ in range(2):
        chat, _ = built(tmp_path, questions(300), curation, SplitConfig(validation=0.2, test=0.2))
        files.append({p.name: p.read_bytes() for p in chat.iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {"train.parquet", "validation.parquet", "test.parquet", "dropped.parquet", "report.json"}


def test_a_split_that_got_no_row_is_refused(tmp_path: Path):
    with pytest.raises(SplitEmpty, match="Split 'validation' got none of 3 rows"):
        built(tmp_path, questions(3), split=SplitConfig(validation=0.01, test=0))


def test_an_unknown_split_name_is_refused(tmp_path: Path):
    with pytest.raises(SplitUnknown, match="holdout"):
        built(tmp_path, [row("a", part="holdout")], split=SplitConfig(split_column="part"))


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValidationError, match="nothing to train on"):
        SplitConfig(validation=0.5, test=0.5)


def test_a_predicate_that_duckdb_does_not_take_is_refused(tmp_path: Path):
    for where in ("scor > 3", "score >", "prompt = 1 / 0 OR error('x')"):
        with pytest.raises(PredicateInvalid, match=r"curation\.where"):
            built(tmp_path, [row("a", score=5)], CurationConfig(where=where))


def test_a_dataset_of_which_nothing_is_left_is_refused(tmp_path: Path):
    with pytest.raises(NoConversationKept, match="empty_turn"):
        built(tmp_path, [row(""), row(" ")])


def test_real_tool_conversations_are_kept(tmp_path: Path, real_rows):
    for name, format, least in (
        ("alpaca_en_demo.json", AlpacaFormat(), 980),
        ("glaive_toolcall_en_demo.json", ShareGPTFormat(), 262),
    ):
        raw, out = tmp_path / f"raw_{name}", tmp_path / f"chat_{name}"
        raw.mkdir()
        out.mkdir()
        ingest([SourceConfig(path=str(real_rows(name)))], required_columns(format), raw, log=lambda _: None)
        report = build_chat_dataset(raw / ROWS, out, format, CurationConfig(), SplitConfig(), log=lambda _: None)
        assert report["kept"] >= least
        assert roles_alternate(out).passed
        assert no_split_leakage(out, 0.9, 0.2).passed


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


def test_roles_fails_on_a_conversation_out_of_order_or_empty(tmp_path: Path):
    assert roles_alternate(write(tmp_path, train=[asked("a")], test=[asked("b")])).passed
    result = roles_alternate(write(tmp_path, train=[asked("a")], test=[asked("b")[::-1]]))
    assert not result.passed and result.rows[0]["row_id"] == "test0"
    assert not roles_alternate(write(tmp_path, train=[asked("a", " ")])).passed
    assert not roles_alternate(write(tmp_path)).passed


def test_leakage_fails_on_an_exact_repeat_across_splits(tmp_path: Path):
    assert no_split_leakage(write(tmp_path, train=[asked("a")], test=[asked("b")]), 0.9, 0.5).passed
    result = no_split_leakage(write(tmp_path, train=[asked("A  b")], test=[asked("a b", "no")]), 0.9, 1.0)
    assert not result.passed and result.numbers["exact_leaks"] == 1
    result = no_split_leakage(write(tmp_path, train=[asked("x")], validation=[asked("a")], test=[asked("a")]), 0.9, 1.0)
    assert not result.passed and result.rows[0]["split"] == "validation"


def test_leakage_fails_when_too_many_held_out_rows_nearly_repeat_training_rows(tmp_path: Path):
    text = " ".join(f"word{n}" for n in range(60))
    chat = write(tmp_path, train=[asked(text + " one")], test=[asked(text + " two"), asked("quite different words")])
    result = no_split_leakage(chat, 0.8, 0.4)
    assert not result.passed and result.numbers["near_duplicate_share"] == 0.5 and result.numbers["exact_leaks"] == 0
    assert no_split_leakage(chat, 0.8, 0.5).passed


def test_drop_share_fails_when_too_many_rows_went_or_one_is_unaccounted_for():
    report = {"ingested": 10, "kept": 6, "dropped": {"duplicate": 4}}
    assert drop_share(report, 0.4).passed
    assert not drop_share(report, 0.3).passed
    assert not drop_share({**report, "kept": 5}, 0.5).passed
