"""What a person looks at on the evaluation's page: scoreboard, quality against size, and the answers that got worse."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_assets import charts
from llm_assets.evaluation.scoreboard import BASE, MERGED


def scoreboard_rows(scoreboard: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One display row per candidate: quality first, then behaviour, size and speed."""
    return [{"candidate": name, **_display(line)} for name, line in scoreboard["candidates"].items()]


def pareto_picture(scoreboard: Mapping[str, Any]) -> bytes:
    """PNG of the primary metric against megabytes of weights, one dot per candidate: up and left is better."""
    primary = scoreboard["primary"]
    points = {
        name: (line["bytes"] / 1e6, line[primary])
        for name, line in scoreboard["candidates"].items()
        if line[primary] is not None
    }
    return charts.labelled_scatter("Quality against size", "weights (MB)", primary.replace("_", " "), points)


def pareto_front(scoreboard: Mapping[str, Any]) -> list[str]:
    """Candidates no other candidate beats on both the primary metric and bytes, smallest first."""
    primary = scoreboard["primary"]
    lines = {name: line for name, line in scoreboard["candidates"].items() if line[primary] is not None}
    by_size = sorted(lines, key=lambda name: (lines[name]["bytes"], -lines[name][primary]))
    front: list[str] = []
    for name in by_size:
        if not front or lines[name][primary] > lines[front[-1]][primary]:
            front.append(name)
    return front


def worst_regressions(rows: Sequence[Mapping[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Rows a candidate answered worse than what it was made from, largest loss first.

    The merged model is compared with the base, a variant with the merged model. The loss is that of the row's execution
    where it was executed, else of its token F1.
    """
    by_key = {(row["candidate"], row["row_id"]): row for row in rows}
    lost: list[tuple[float, dict[str, Any]]] = []
    for (candidate, row_id), row in by_key.items():
        reference = by_key.get((BASE if candidate == MERGED else MERGED, row_id))
        if candidate == BASE or reference is None or _score(row) >= _score(reference):
            continue
        shown = {"candidate": candidate, "row_id": row_id, "prompt": row["prompt"], "expected": row["expected"]}
        lost.append((_score(reference) - _score(row), {**shown, "was": reference["answer"], "is": row["answer"]}))
    lost.sort(key=lambda item: (-item[0], item[1]["candidate"], item[1]["row_id"]))
    return [{key: _clipped(value) for key, value in shown.items()} for _, shown in lost[:limit]]


def _score(row: Mapping[str, Any]) -> float:
    return row["token_f1"] if row["executes_equal"] is None else float(row["executes_equal"])


def _clipped(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


def _display(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()}
