"""May this version replace the one in use? Decided on answers to the same rows, never on two different exams.

The candidate may be worse by `max_regression` on the shared rows: exact ties are rare between equally good models, and
a gate that refuses half of them is soon switched off. Floors in `min_metrics` hold whatever the champion does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_assets.core import CheckResult
from llm_assets.evaluation.evaluate import read_answer_rows, read_scoreboard
from llm_assets.evaluation.paired import common, improvement
from llm_assets.evaluation.scoreboard import MERGED, primary_scores
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.contents import EVALUATION_PATH
from llm_assets.registry.versions import RegisteredVersion

RESAMPLES = 2000


@dataclass(frozen=True)
class Exam:
    """A version's scoreboard and the rows of its answers (`scoreboard.ANSWER_ROWS`)."""

    version: str
    scoreboard: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]]


def read_exam(version: RegisteredVersion) -> Exam:
    """The evaluation that travels with a version."""
    evaluation = version.directory / EVALUATION_PATH
    return Exam(version.version, read_scoreboard(evaluation), read_answer_rows(evaluation))


def gate(candidate: Exam, champion: Exam | None, config: RegistryConfig) -> CheckResult:
    """Pass when every floor holds and the primary metric is not worse than the champion's on the rows both answered."""
    line = candidate.scoreboard["candidates"][MERGED]
    short = [
        f"{name} is {line.get(name)}, {floor} wanted"
        for name, floor in config.min_metrics.items()
        if not isinstance(line.get(name), (int, float)) or line[name] < floor
    ]
    if short:
        known = ", ".join(name for name, value in line.items() if isinstance(value, (int, float)))
        return CheckResult(False, f"Below registry.min_metrics: {'; '.join(short)}. Measured: {known}.")
    if champion is None:
        return CheckResult(True, "There is no version in use to compare with; every floor holds.")
    if champion.version == candidate.version:
        return CheckResult(True, f"Version {candidate.version} is already the one in use.")
    return _compare(candidate, champion, config)


def _compare(candidate: Exam, champion: Exam, config: RegistryConfig) -> CheckResult:
    primary = candidate.scoreboard["primary"]
    ours, theirs = common(*(primary_scores(exam.answers, MERGED, primary) for exam in (candidate, champion)))
    numbers: dict[str, float | int | str | bool] = {"common_rows": len(ours)}
    if len(ours) < config.min_common_rows:
        return CheckResult(
            False,
            f"Only {len(ours)} rows were answered by both version {candidate.version} and {champion.version}, "
            f"{config.min_common_rows} wanted: their {primary} cannot be compared. Keep the test rows between "
            "versions, or set registry.min_common_rows to 0 to promote without comparing.",
            numbers,
        )
    if not ours:
        return CheckResult(True, "No shared rows, and none asked for: promoted without comparing.", numbers)
    difference = improvement(ours, theirs, RESAMPLES, seed=0)
    assert difference.value is not None and difference.low is not None and difference.high is not None
    return CheckResult(
        difference.value >= -config.max_regression,
        f"{primary} on {len(ours)} shared rows: {difference.value:+.1%} against version {champion.version} "
        f"(95 % interval {difference.low:+.1%} to {difference.high:+.1%}; {-config.max_regression:+.1%} allowed).",
        {**numbers, "difference": difference.value, "low": difference.low, "high": difference.high},
    )
