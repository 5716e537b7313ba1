"""The metric for meaning: does the model's SQL return what the expected SQL returns, on the row's own tables.

One small data set lets wrong SQL match by luck (a wrong aggregate over one row), so every query also runs on redrawn
copies of the tables and must agree on all of them. Expected SQL that returns no row anywhere proves nothing: such rows
are reported and left out of the accuracy. The cost is 3-5 ms per distinct answer.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_assets.evaluation.metrics import fenced_text
from llm_assets.evaluation.sql_sandbox import SqlResult, SqlSandbox


@dataclass(frozen=True)
class Verdict:
    """One answer's execution.

    Attributes:
        equal: Same results as the expected SQL; None when the row is no evidence (its expected SQL fails or is empty).
        error: Why the answer, or without `equal` the expected SQL, gave no result; None when it ran.
    """

    equal: bool | None
    error: str | None = None


def execute_answers(
    contexts: Sequence[str],
    expected: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    sandbox: SqlSandbox,
    log: Callable[[str], None],
) -> dict[str, list[Verdict]]:
    """Execute every candidate's answers, row by row, each distinct SQL text once.

    Args:
        contexts: `CREATE TABLE …; INSERT …` per row, shape `(rows,)`.
        expected: Expected SQL per row, shape `(rows,)`.
        answers: Candidate to its answers, each of shape `(rows,)`; Markdown fences are taken off.
        sandbox: Where the SQL runs.
        log: Receives a line per tenth of the rows.

    Returns:
        Candidate to one verdict per row.
    """
    verdicts: dict[str, list[Verdict]] = {name: [] for name in answers}
    for row, (context, gold) in enumerate(zip(contexts, expected, strict=True)):
        texts = {name: fenced_text(column[row]) for name, column in answers.items()}
        judged = _judge_row(sandbox, context, gold, set(texts.values()))
        for name, text in texts.items():
            verdicts[name].append(judged[text])
        if (row + 1) % max(1, len(contexts) // 10) == 0:
            log(f"executed the answers to {row + 1} of {len(contexts)} rows")
    return verdicts


def _judge_row(sandbox: SqlSandbox, context: str, gold: str, texts: set[str]) -> dict[str, Verdict]:
    opened = sandbox.open(context)
    wanted = opened if opened.error else sandbox.query(gold)
    if wanted.error or not any(wanted.results):
        why = f"expected SQL: {wanted.error}" if wanted.error else "expected SQL returns no row"
        return dict.fromkeys(texts, Verdict(None, why))
    return {text: _judge(wanted, sandbox.query(text)) for text in sorted(texts)}


def _judge(wanted: SqlResult, answered: SqlResult) -> Verdict:
    if answered.error:
        return Verdict(equal=False, error=answered.error)
    pairs = zip(wanted.results, answered.results, strict=True)
    return Verdict(equal=all(same_rows(w, a, wanted.ordered) for w, a in pairs))


def same_rows(wanted: Sequence[Sequence[Any]], answered: Sequence[Sequence[Any]], ordered: bool) -> bool:
    """Whether two results hold the same rows equally often; their order counts only where `ordered`.

    Column names do not count, column order does.
    """
    left, right = [tuple(row) for row in wanted], [tuple(row) for row in answered]
    return left == right if ordered else Counter(left) == Counter(right)


def evidence(verdicts: Sequence[Verdict]) -> int:
    """How many rows of a candidate say anything about its accuracy."""
    return sum(verdict.equal is not None for verdict in verdicts)
