"""Each check with a good input and every broken one it exists for."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from llm_assets.inference.checks import (
    complete,
    empty_share,
    error_share,
    freshness,
    length_capped_share,
    schema,
    token_stats,
)

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def inputs(*row_ids, refused=0, **columns):
    reasons = ["empty_prompt: x"] * refused + [None] * (len(row_ids) - refused)
    data = {"question": ["why?"] * len(row_ids), "row_id": list(row_ids), "refused": pa.array(reasons, pa.string())}
    return pa.table({**data, **columns})


def outputs(*completions, finish="stop", error=None, prompt_tokens=10):
    count = len(completions)
    return pa.table(
        {
            "row_id": [f"row_{n}" for n in range(count)],
            "completion": list(completions),
            "finish_reason": [finish] * count if isinstance(finish, str) else finish,
            "prompt_tokens": pa.array([prompt_tokens] * count, pa.int32()),
            "completion_tokens": pa.array([len(text) for text in completions], pa.int32()),
            "error": pa.array([error] * count if not isinstance(error, list) else error, pa.string()),
        }
    )


GOOD = outputs(*["SELECT 1;"] * 20)


def test_schema_passes_rows_with_unique_ids_and_questions():
    assert schema({"a": inputs("1", "2"), "b": inputs("1")}, ["question"], 0.0).passed


def test_schema_names_a_repeated_id():
    result = schema({"a": inputs("1"), "b": inputs("2", "2")}, ["question"], 0.0)
    assert not result.passed
    assert (result.rows[0]["partition"], result.rows[0]["column"], result.rows[0]["value"]) == ("b", "row_id", "2")


def test_schema_names_a_missing_column():
    result = schema({"a": inputs("1")}, ["question", "context"], 0.0)
    assert not result.passed
    assert "context" in str(result.rows)


def test_schema_refuses_too_many_rows_without_a_question():
    tables = {"large": inputs(*map(str, range(50))), "small": inputs("1", "2", refused=1)}
    assert not schema(tables, ["question"], 0.1).passed
    assert schema(tables, ["question"], 0.5).passed


def test_freshness_without_a_limit_only_reports():
    result = freshness({"a": (NOW - timedelta(days=400)).timestamp()}, None, NOW)
    assert result.passed
    assert result.numbers["oldest_hours"] == 9600


def test_freshness_refuses_an_old_file_by_partition():
    times = {"a": (NOW - timedelta(hours=1)).timestamp(), "b": (NOW - timedelta(hours=30)).timestamp()}
    result = freshness(times, 24, NOW)
    assert not result.passed
    assert result.rows == [{"partition": "b", "age_hours": 30.0}]
    assert freshness(times, 31, NOW).passed


def test_freshness_of_no_due_partition_passes():
    assert freshness({}, 24, NOW).passed


def test_complete_passes_when_ids_in_equal_ids_out():
    assert complete({"a": ["1", "2"], "b": []}, {"a": ["2", "1"], "b": []}).passed


def test_complete_finds_missing_foreign_and_repeated_rows():
    came_in = {"missing": ["1", "2"], "foreign": ["1"], "repeated": ["1"], "absent": ["1"], "good": ["1"]}
    came_out = {"missing": ["1"], "foreign": ["1", "9"], "repeated": ["1", "1"], "good": ["1"]}
    result = complete(came_in, came_out)
    assert not result.passed
    assert {row["partition"]: (row["missing"], row["foreign"], row["repeated"]) for row in result.rows} == {
        "missing": (1, 0, 0),
        "foreign": (0, 1, 0),
        "repeated": (0, 0, 1),
        "absent": (1, 0, 0),
    }


def test_error_share_shows_the_reasons():
    broken = outputs("", "SELECT 1;", error=["prompt too long", None])
    result = error_share({"good": GOOD, "broken": broken}, 0.1)
    assert not result.passed
    assert result.rows == [{"partition": "broken", "row_id": "row_0", "error": "prompt too long"}]
    assert error_share({"good": GOOD}, 0.0).passed


def test_a_small_broken_partition_does_not_hide_behind_a_large_good_one():
    assert not empty_share({"good": outputs(*["x"] * 500), "broken": outputs("", "x")}, 0.1).passed


def test_empty_share_counts_blank_answers_but_not_failed_rows():
    assert not empty_share({"a": outputs(" \n", "x")}, 0.1).passed
    assert empty_share({"a": outputs("", "x", error=["failed", None])}, 0.0).passed
    assert empty_share({"a": GOOD}, 0.0).passed


def test_length_capped_share_counts_answers_without_an_end():
    assert not length_capped_share({"a": outputs("x", "y", finish=["length", "stop"])}, 0.4).passed
    assert length_capped_share({"a": GOOD}, 0.0).passed


def test_shares_of_no_rows_are_zero():
    empty = outputs()
    assert empty_share({"a": empty}, 0.0).passed
    assert length_capped_share({"a": empty}, 0.0).passed


def test_token_stats_warns_of_prompts_longer_than_in_training():
    result = token_stats({"a": GOOD, "b": outputs("x", prompt_tokens=200)}, trained_prompt_tokens=100)
    assert not result.passed
    assert result.warn_only
    assert result.numbers["beyond_training_share"] == 1 / 21
    assert token_stats({"a": GOOD}, trained_prompt_tokens=100).passed
    assert token_stats({"a": GOOD}, trained_prompt_tokens=None).passed


def test_token_stats_of_nothing_answered_is_an_error():
    result = token_stats({"a": outputs("", error="failed")}, trained_prompt_tokens=100)
    assert not result.passed
    assert not result.warn_only
