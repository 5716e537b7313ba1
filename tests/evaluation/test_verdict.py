from typing import Any

import pytest
from pydantic import ValidationError

from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.report import pareto_front, pareto_picture, scoreboard_rows, worst_regressions
from llm_assets.evaluation.scoreboard import compared
from llm_assets.evaluation.verdict import beats_base, variants_keep_quality

CONFIG = EvaluationConfig(resamples=500)


def answers(candidate: str, matches: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "candidate": candidate,
            "row_id": f"{place:03}",
            "prompt": "?",
            "expected": "yes",
            "answer": "yes" if match else "no",
            "exact_match": float(match),
            "token_f1": float(match),
            "executes_equal": None,
        }
        for place, match in enumerate(matches)
    ]


def scoreboard(base: list[int], merged: list[int], variant: list[int]) -> dict[str, Any]:
    rows = answers("base", base) + answers("merged", merged) + answers("w4a16", variant)
    lines = {
        name: {"exact_match": sum(matches) / len(matches), "bytes": size}
        for name, matches, size in (("base", base, 800), ("merged", merged, 800), ("w4a16", variant, 250))
    }
    return {"rows": len(base), "primary": "exact_match", "candidates": lines, **compared(rows, CONFIG)}


GOOD, BAD = [1] * 18 + [0] * 2, [0] * 20


def test_a_clear_improvement_beats_the_base():
    result = beats_base(scoreboard(BAD, GOOD, GOOD), min_improvement=0.1)
    assert result.passed and result.numbers["improvement"] == 0.9
    assert "base 0.0%, merged 90.0%" in result.summary


def test_an_improvement_within_chance_does_not_beat_the_base():
    one_better = [1] + [0] * 19
    result = beats_base(scoreboard(BAD, one_better, BAD), min_improvement=0.0)
    assert not result.passed and result.numbers["improvement_low"] == 0.0


def test_an_improvement_below_the_wanted_one_does_not_beat_the_base():
    assert not beats_base(scoreboard(BAD, GOOD, GOOD), min_improvement=0.95).passed


def test_a_worse_model_does_not_beat_the_base():
    assert not beats_base(scoreboard(GOOD, BAD, BAD), min_improvement=0.0).passed


def test_an_exam_without_evidence_does_not_pass():
    empty = {
        "primary": "execution_accuracy",
        "improvement": {"merged": {"value": None, "low": None, "high": None, "rows": 0}},
    }
    result = beats_base(empty, min_improvement=0.0)
    assert not result.passed and "execution_error" in result.summary


def test_a_variant_below_its_floor_is_a_warning_by_name():
    lossy = scoreboard(BAD, GOOD, [1] * 9 + [0] * 11)
    result = variants_keep_quality(lossy, min_recovery=0.9)
    assert not result.passed and result.warn_only and "w4a16" in result.summary
    assert result.numbers["recovery_w4a16"] == 0.5
    assert variants_keep_quality(scoreboard(BAD, GOOD, GOOD), min_recovery=0.9).passed


def test_a_variant_of_a_model_that_scores_nothing_has_no_recovery_and_does_not_pass():
    result = variants_keep_quality(scoreboard(BAD, BAD, BAD), min_recovery=0.9)
    assert not result.passed and result.rows[0]["recovery"] == "undefined"


def test_the_pareto_front_keeps_what_nothing_beats_on_quality_and_bytes():
    assert pareto_front(scoreboard(BAD, GOOD, [1] * 9 + [0] * 11)) == ["w4a16", "merged"]
    assert pareto_front(scoreboard(BAD, GOOD, GOOD)) == ["w4a16"]


def test_the_report_has_a_row_per_candidate_and_a_picture_an_event_log_can_hold():
    board = scoreboard(BAD, GOOD, GOOD)
    assert [row["candidate"] for row in scoreboard_rows(board)] == ["base", "merged", "w4a16"]
    picture = pareto_picture(board)
    assert picture.startswith(b"\x89PNG") and len(picture) < 100_000


def test_worst_regressions_compare_each_candidate_with_what_it_was_made_from():
    rows = answers("base", [1, 0, 0]) + answers("merged", [0, 1, 1]) + answers("w4a16", [0, 0, 1])
    found = worst_regressions(rows, limit=10)
    assert [(row["candidate"], row["row_id"]) for row in found] == [("merged", "000"), ("w4a16", "001")]
    assert found[1]["was"] == "yes" and found[1]["is"] == "no"
    assert len(worst_regressions(rows, limit=1)) == 1


def test_a_metric_named_twice_is_refused():
    with pytest.raises(ValidationError, match="names one twice"):
        EvaluationConfig(metrics=("exact_match", "exact_match"))
