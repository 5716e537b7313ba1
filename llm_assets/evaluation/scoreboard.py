"""From answers to numbers: a row per candidate and held-out row, a line per candidate, and what differences are worth.

Everything here is a pure function of answers and verdicts, so a scoreboard can be recomputed from `answers.parquet`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llm_assets.evaluation import metrics, paired
from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.held_out import HeldOut
from llm_assets.evaluation.sql_execution import Verdict

BASE, MERGED = "base", "merged"
ANSWER_ROWS = pa.schema(
    [
        ("candidate", pa.string()),
        ("row_id", pa.string()),
        ("prompt", pa.string()),
        ("expected", pa.string()),
        ("answer", pa.string()),
        ("exact_match", pa.float64()),
        ("normalised_match", pa.float64()),
        ("token_f1", pa.float64()),
        ("executes_equal", pa.bool_()),
        ("execution_error", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)


def answer_rows(
    candidate: str, held_out: HeldOut, answers: pa.Table, verdicts: Sequence[Verdict] | None
) -> list[dict[str, Any]]:
    """Rows of `ANSWER_ROWS` for one candidate, in held-out order; a row without an answer counts as an empty one."""
    by_id = {answer["row_id"]: answer for answer in answers.to_pylist()}
    missing = {"completion": "", "finish_reason": "error", "prompt_tokens": 0, "completion_tokens": 0}
    rows: list[dict[str, Any]] = []
    for place, row_id in enumerate(held_out.row_ids):
        given = by_id.get(row_id, missing)
        answer, expected = given["completion"] or "", held_out.expected[place]
        verdict = verdicts[place] if verdicts else Verdict(None)
        rows.append(
            {
                "candidate": candidate,
                "row_id": row_id,
                "prompt": held_out.prompts[place],
                "expected": expected,
                "answer": answer,
                **{name: metric(answer, expected) for name, metric in metrics.TEXT_METRICS.items()},
                "executes_equal": verdict.equal,
                "execution_error": verdict.error,
                **{name: given[name] for name in ("finish_reason", "prompt_tokens", "completion_tokens")},
            }
        )
    return rows


def candidate_line(rows: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, float | int | None]:
    """Means of one candidate's rows: the configured metrics, how often it stopped, how long it spoke."""
    line: dict[str, float | int | None] = {
        name: float(np.mean([row[name] for row in rows]))
        for name in metrics.TEXT_METRICS
        if name in config.metrics or name == "exact_match"
    }
    if "sql_execution" in config.metrics:
        judged = [row["executes_equal"] for row in rows if row["executes_equal"] is not None]
        line["execution_accuracy"] = float(np.mean(judged)) if judged else None
        line["execution_rows"] = len(judged)
        line["valid_sql_share"] = _share(
            row["executes_equal"] is not None and not row["execution_error"] for row in rows
        )
    line["stop_rate"] = _share(row["finish_reason"] == "stop" for row in rows)
    line["length_capped_share"] = _share(row["finish_reason"] == "length" for row in rows)
    line["error_share"] = _share(row["finish_reason"] == "error" for row in rows)
    line["mean_completion_tokens"] = float(np.mean([row["completion_tokens"] for row in rows]))
    return line


def primary_scores(rows: Sequence[Mapping[str, Any]], candidate: str, primary: str) -> dict[str, float]:
    """Score of each row of one candidate on the primary metric; rows that are no evidence are left out."""
    column = "executes_equal" if primary == "execution_accuracy" else primary
    return {
        row["row_id"]: float(row[column]) for row in rows if row["candidate"] == candidate and row[column] is not None
    }


def compared(rows: Sequence[Mapping[str, Any]], config: EvaluationConfig) -> dict[str, dict[str, Any]]:
    """`improvement` of the merged model over the base, `recovery` of each variant against the merged model."""
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    scores = {name: primary_scores(rows, name, config.primary) for name in names}
    better = paired.improvement(*paired.common(scores[MERGED], scores[BASE]), config.resamples, config.seed)
    kept = {
        name: paired.recovery(*paired.common(scores[name], scores[MERGED]), config.resamples, config.seed).as_dict()
        for name in names
        if name not in (BASE, MERGED)
    }
    return {"improvement": {MERGED: better.as_dict()}, "recovery": kept}


def _share(flags: Any) -> float:
    return float(np.mean(list(flags)))
