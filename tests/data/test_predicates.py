"""Predicates keep what they say, name the row they fail on, reach nothing outside, and are refused when misspelled."""

import sys
from pathlib import Path

import pytest
from curated_by_hand import curated, dropped, kept_ids, questions, row
from pydantic import ValidationError

from llm_assets.data import CurationConfig
from llm_assets.data.predicates import PredicateFailed, PredicateInvalid, source_digest


@pytest.fixture
def my_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of predicates that only a YAML names."""
    (tmp_path / "my_filters.py").write_text(
        "def polite(messages, row):\n    return 'please' in messages[-2]['content'] or row['level'] == 3\n"
        "def divides(messages, row):\n    return 6 / row['level'] > 1\n"
        "def text(messages, row):\n    return 'yes'\n"
        "def one(messages):\n    return True\n"
        "constant = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_filters", raising=False)
    return "my_filters"


def test_rows_for_which_the_sql_does_not_hold_are_dropped(tmp_path: Path):
    rows = [row("a", "short"), row("b", "long enough to stay"), row("c", "another that stays")]
    chat, report = curated(tmp_path, rows, CurationConfig(where="length(completion) > 10"))
    assert kept_ids(chat) == ["r1", "r2"] and report["dropped"] == {"where": 1}
    assert dropped(chat)["r0"] == ("where", "not length(completion) > 10")


def test_a_sql_predicate_that_fails_on_a_row_names_it(tmp_path: Path):
    rows = [row(f"q{n}", score=str(n) if n != 37 else "many") for n in range(50)]
    with pytest.raises(PredicateFailed, match=r"fails on row r37: .*'many'.*TRY_CAST"):
        curated(tmp_path, rows, CurationConfig(where="CAST(score AS INTEGER) >= 0"))
    assert curated(tmp_path, rows, CurationConfig(where="TRY_CAST(score AS INTEGER) >= 0"))[1]["kept"] == 49


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("scor > 3", "prompt, completion"),
        ("(SELECT count(*) FROM read_csv('/etc/passwd')) > 0", "disabled by configuration"),
        ("(SELECT count(*) FROM '/tmp/rows.parquet') > 0", "disabled by configuration"),
        ("getenv('HOME') = ''", "does not exist"),
    ],
)
def test_a_sql_predicate_sees_the_source_columns_and_nothing_else(tmp_path: Path, where: str, why: str):
    with pytest.raises(PredicateInvalid, match=why):
        curated(tmp_path, questions(3), CurationConfig(where=where))


@pytest.mark.parametrize(
    "where", ["score >", "true; DROP TABLE x", "true) FROM (SELECT 1", "", "true); SET threads = (9"]
)
def test_sql_that_is_no_expression_is_refused_at_load(where: str):
    with pytest.raises(ValidationError, match="SQL expression"):
        CurationConfig(where=where)


def test_rows_to_which_the_python_predicate_says_no_are_dropped(tmp_path: Path, my_filters: str):
    rows = [row("please help", level=1), row("help", level=1), row("help me", level=3)]
    chat, report = curated(tmp_path, rows, CurationConfig(predicate=f"{my_filters}:polite"))
    assert kept_ids(chat) == ["r0", "r2"] and report["dropped"] == {"predicate": 1}


def test_a_predicate_that_raises_or_answers_otherwise_names_the_row(tmp_path: Path, my_filters: str):
    rows = [row("a", level=1), row("b", level=0)]
    with pytest.raises(PredicateFailed, match="raised ZeroDivisionError on row r1"):
        curated(tmp_path, rows, CurationConfig(predicate=f"{my_filters}:divides"))
    with pytest.raises(PredicateFailed, match="answered 'yes' on row r0"):
        curated(tmp_path, rows, CurationConfig(predicate=f"{my_filters}:text"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("my_filters", "not of the form"),
        ("my_filters:polit", "has no attribute 'polit'"),
        ("my_filter:polite", "No module named 'my_filter'"),
        ("my_filters:one", "does not take two arguments"),
        ("my_filters:constant", "does not take two arguments"),
    ],
)
def test_a_predicate_that_is_not_there_is_refused_at_load(my_filters: str, name: str, why: str):
    with pytest.raises(ValidationError, match=why):
        CurationConfig(predicate=name)


def test_an_edited_predicate_has_another_digest(my_filters: str, tmp_path: Path):
    before = source_digest(f"{my_filters}:polite")
    assert before == source_digest(f"{my_filters}:polite")
    path = tmp_path / "my_filters.py"
    path.write_text(path.read_text().replace("please", "pretty please"))
    assert source_digest(f"{my_filters}:polite") != before
