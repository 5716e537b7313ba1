"""What must hold of a partition's rows before and after they are answered.

Shares are judged per partition: a small broken one must not hide behind a large good one. Each function takes all
partitions of a run, because a run reports each check once.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from llm_assets.core import CheckResult

SAMPLE_ROWS = 20
Tables = Mapping[str, pa.Table]


def schema(inputs: Tables, columns: Sequence[str], max_refused_share: float) -> CheckResult:
    """Every partition has the columns the format asks from, unique row ids, and a question in almost every row.

    Args:
        inputs: Rows by partition, as `read_partition` writes them.
        columns: Columns the format reads.
        max_refused_share: Rows of a partition that may hold no question.
    """
    failures = [
        failure for partition, table in inputs.items() for failure in _schema_failures(partition, table, columns)
    ]
    shares = {partition: _share(_present(table["refused"])) for partition, table in inputs.items()}
    failures += [
        {
            "partition": partition,
            "column": "refused",
            "problem": f"share above {max_refused_share:.2%}",
            "value": f"{share:.2%}",
        }
        for partition, share in shares.items()
        if share > max_refused_share
    ]
    rows = sum(table.num_rows for table in inputs.values())
    return CheckResult(
        passed=not failures,
        summary=f"{rows} rows in {len(inputs)} partitions; {len(failures)} failures"
        + (f", first: {failures[0]}." if failures else "."),
        numbers={"rows": rows, "failures": len(failures), "refused_share": max(shares.values(), default=0.0)},
        rows=failures[:SAMPLE_ROWS],
    )


def freshness(newest_file_times: Mapping[str, float], max_age_hours: float | None, now: datetime) -> CheckResult:
    """The input files of the partitions that are due were written recently enough; without a limit it only reports.

    Args:
        newest_file_times: Seconds since the epoch by partition, of the partitions whose age matters.
        max_age_hours: Oldest allowed; None allows any.
        now: Time zone aware.
    """
    ages = {
        partition: (now - datetime.fromtimestamp(seconds, UTC)).total_seconds() / 3600
        for partition, seconds in newest_file_times.items()
    }
    limit = float("inf") if max_age_hours is None else max_age_hours
    rows = [{"partition": partition, "age_hours": round(age, 2)} for partition, age in ages.items() if age > limit]
    oldest = max(ages.values(), default=0.0)
    return CheckResult(
        passed=not rows,
        summary=f"The oldest of {len(ages)} due partitions was written {oldest:.1f} h ago"
        + (f"; at most {max_age_hours:g} h are allowed." if max_age_hours is not None else "; no limit is set."),
        numbers={"oldest_hours": oldest},
        rows=rows[:SAMPLE_ROWS],
    )


def complete(inputs: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[str]]) -> CheckResult:
    """Every row that came in came out once, and no other did.

    Args:
        inputs: Row ids by partition.
        outputs: Row ids by partition.
    """
    rows = []
    for partition, came_in in inputs.items():
        came_out = outputs.get(partition, ())
        missing, foreign = set(came_in) - set(came_out), set(came_out) - set(came_in)
        repeated = len(came_out) - len(set(came_out))
        if missing or foreign or repeated:
            example = next(iter(sorted(missing or foreign)), "")
            counts = {"missing": len(missing), "foreign": len(foreign), "repeated": repeated}
            rows.append({"partition": partition, **counts, "example": example})
    total = sum(len(ids) for ids in inputs.values())
    return CheckResult(
        passed=not rows,
        summary=f"{total} rows in {len(inputs)} partitions; {len(rows)} partitions are incomplete.",
        numbers={"rows": total, "incomplete_partitions": len(rows)},
        rows=rows[:SAMPLE_ROWS],
    )


def error_share(outputs: Tables, limit: float) -> CheckResult:
    """Few enough rows failed; shows the reasons."""
    failed = {partition: _present(table["error"]) for partition, table in outputs.items()}
    return _share_check("rows failed", outputs, failed, limit, show="error")


def empty_share(outputs: Tables, limit: float) -> CheckResult:
    """Few enough answers hold no text; failed rows are counted by `error_share` instead."""
    empty = {
        partition: np.array([not text.strip() for text in table["completion"].to_pylist()], bool)
        & ~_present(table["error"])
        for partition, table in outputs.items()
    }
    return _share_check("answers are empty", outputs, empty, limit, show="finish_reason")


def length_capped_share(outputs: Tables, limit: float) -> CheckResult:
    """Few enough answers were cut off before the model ended them."""
    capped = {partition: _equal(table["finish_reason"], "length") for partition, table in outputs.items()}
    return _share_check("answers were cut off", outputs, capped, limit, show="completion")


def token_stats(outputs: Tables, trained_prompt_tokens: int | None) -> CheckResult:
    """Prompts are no longer than those the model was trained on; a warning, because longer ones may still do well.

    Args:
        outputs: Answers by partition.
        trained_prompt_tokens: Longest training prompt; None where the registered version does not say.
    """
    answered = [table.filter(table["error"].is_null()) for table in outputs.values()]
    prompt = np.concatenate([table["prompt_tokens"].to_numpy() for table in answered])
    completion = np.concatenate([table["completion_tokens"].to_numpy() for table in answered])
    beyond = float((prompt > trained_prompt_tokens).mean()) if trained_prompt_tokens and prompt.size else 0.0
    numbers = {
        "mean_prompt_tokens": float(prompt.mean()) if prompt.size else 0.0,
        "max_prompt_tokens": int(prompt.max(initial=0)),
        "mean_completion_tokens": float(completion.mean()) if completion.size else 0.0,
        "max_completion_tokens": int(completion.max(initial=0)),
        "beyond_training_share": beyond,
    }
    return CheckResult(
        passed=bool(prompt.size) and beyond == 0.0,
        summary=f"{prompt.size} answers, {numbers['mean_prompt_tokens']:.1f} prompt and "
        f"{numbers['mean_completion_tokens']:.1f} completion tokens on average; {beyond:.1%} of the prompts are longer "
        f"than any in training ({trained_prompt_tokens or 'unknown'} tokens).",
        numbers=numbers,
        warn_only=bool(prompt.size),
    )


def _share_check(what: str, outputs: Tables, flags: Mapping[str, np.ndarray], limit: float, show: str) -> CheckResult:
    shares = {partition: _share(flagged) for partition, flagged in flags.items()}
    worst = max(shares, key=lambda partition: shares[partition], default="")
    flagged = sum(int(flag.sum()) for flag in flags.values())
    rows = [
        {"partition": partition, "row_id": row["row_id"], show: str(row[show])[:200]}
        for partition, table in outputs.items()
        for row in table.filter(pa.array(flags[partition])).slice(0, SAMPLE_ROWS).select(["row_id", show]).to_pylist()
    ]
    return CheckResult(
        passed=all(share <= limit for share in shares.values()),
        summary=f"{flagged} of {sum(table.num_rows for table in outputs.values())} {what}; at worst "
        f"{shares.get(worst, 0.0):.2%} in {worst or 'no partition'}, at most {limit:.2%} are allowed.",
        numbers={"rows": flagged, "worst_share": shares.get(worst, 0.0)},
        rows=rows[:SAMPLE_ROWS],
    )


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else 0.0


def _present(column: pa.ChunkedArray) -> np.ndarray:
    return ~np.asarray(column.is_null(), bool)


def _equal(column: pa.ChunkedArray, value: str) -> np.ndarray:
    return np.asarray(column.to_pandas() == value, bool)


def _schema_failures(partition: str, table: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pandera.pandas as pandera
    from pandera.errors import SchemaErrors

    expected = pandera.DataFrameSchema(
        {
            **{name: pandera.Column(nullable=True) for name in columns},
            "row_id": pandera.Column(str, pandera.Check.str_length(min_value=1), unique=True),
            "refused": pandera.Column(str, nullable=True, coerce=False, required=True),
        }
    )
    present = [name for name in dict.fromkeys([*columns, "row_id", "refused"]) if name in table.column_names]
    frame = table.select(present).to_pandas().astype(dict.fromkeys(present, object))
    try:
        expected.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases.head(SAMPLE_ROWS).to_dict("records")
        return [
            {
                "partition": partition,
                "column": case["column"] or case["failure_case"],
                "problem": str(case["check"]),
                "value": str(case["failure_case"]),
            }
            for case in cases
        ]
    return []
