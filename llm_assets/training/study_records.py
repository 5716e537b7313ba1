"""What a study publishes: its trials, its best parameters, and what it was made from.

The files hold no time and no path, so that the same study is the same bytes; seconds are told to people only. What it
was made from is what lets a later run use it again as it is, or start from its best parameters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import CheckResult, LLMAssetsError

STATES = ("complete", "pruned", "failed")
_COLUMNS = pa.schema(
    [
        ("number", pa.int32()),
        ("state", pa.string()),
        ("value", pa.float64()),
        ("parameters", pa.string()),
        ("steps", pa.int32()),
        ("tokens", pa.int64()),
        ("reason", pa.string()),
    ]
)


class StudyEmpty(LLMAssetsError):
    """A study has no completed trial."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as it is published.

    Attributes:
        number: Place in the study; 0 has the YAML's own parameters.
        state: complete, pruned or failed.
        value: Evaluation loss at its end; None unless complete.
        parameters: The searched parameters.
        steps: Step of its last evaluation.
        tokens: Tokens trained on until then.
        reason: Why it was pruned or failed; for lack of memory, the shape that did not fit.
        seconds: How long it ran, where this process knows; not published.
    """

    number: int
    state: str
    value: float | None
    parameters: dict[str, Any]
    steps: int
    tokens: int = 0
    reason: str = ""
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class StudyOrigin:
    """What a study was made from.

    Attributes:
        inputs: Digest of the dataset, the base, and every setting that decides a trial.
        trial_tokens: Tokens of a trial that is not cut short.
        warm_start: Parameters taken over from the study before; None without one.
    """

    inputs: str
    trial_tokens: int
    warm_start: dict[str, Any] | None = None


@dataclass(frozen=True)
class StudyReport:
    """A finished study: its trials in order, and what it was made from."""

    trials: Sequence[TrialRecord]
    origin: StudyOrigin
    reused: bool = False

    @property
    def best(self) -> TrialRecord | None:
        """The complete trial of lowest value, the earliest of equals."""
        return best_trial(self.trials)

    def count(self, state: str) -> int:
        """Trials that ended this way."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def tokens(self) -> int:
        """Tokens all trials trained on."""
        return sum(trial.tokens for trial in self.trials)

    @property
    def tokens_without_pruning(self) -> int:
        """Tokens they would have trained on had none been cut short."""
        return sum(trial.tokens if trial.state == "failed" else self.origin.trial_tokens for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Seconds of all trials together, as far as known."""
        return sum(trial.seconds or 0.0 for trial in self.trials)


def best_trial(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    """The complete trial of lowest value, the earliest of equals."""
    complete = [trial for trial in trials if trial.value is not None]
    return min(complete, key=lambda trial: (trial.value, trial.number), default=None)


def write_study(out: Path, report: StudyReport) -> None:
    """Write `best.json`, `trials.parquet` and `study.json`, without times or paths."""
    best = report.best
    content = {"parameters": best.parameters if best else {}, "value": best.value if best else None}
    (out / "best.json").write_text(json.dumps(content, indent=1, sort_keys=True))
    rows = [{**vars(trial), "parameters": json.dumps(trial.parameters, sort_keys=True)} for trial in report.trials]
    pq.write_table(pa.Table.from_pylist(rows, _COLUMNS), out / "trials.parquet")
    (out / "study.json").write_text(json.dumps(vars(report.origin), indent=1, sort_keys=True))


def read_study(published: Path) -> StudyReport:
    """A published study."""
    rows = pq.read_table(published / "trials.parquet").to_pylist()
    trials = [TrialRecord(**{**row, "parameters": json.loads(row["parameters"])}) for row in rows]
    return StudyReport(trials, StudyOrigin(**json.loads((published / "study.json").read_text())), reused=True)


def best_parameters(published: Path) -> dict[str, Any]:
    """The parameters a published study found.

    Raises:
        StudyEmpty: no trial of it completed.
    """
    best: Mapping[str, Any] = json.loads((published / "best.json").read_text())
    if best["value"] is None:
        raise StudyEmpty(
            "No trial of hpo_study completed, so there are no parameters to train with. Look at the reasons in its "
            "table of trials, change training or study settings, and materialize hpo_study again."
        )
    return best["parameters"]


def check_completed_trial(trials: Sequence[TrialRecord]) -> CheckResult:
    """At least one trial ran to its end."""
    counts = {state: sum(trial.state == state for trial in trials) for state in STATES}
    return CheckResult(
        passed=counts["complete"] > 0,
        summary=f"{counts['complete']} of {len(trials)} trials completed, {counts['pruned']} were pruned, "
        f"{counts['failed']} failed.",
        numbers={f"{state}_trials": count for state, count in counts.items()},
        rows=[{"trial": t.number, "state": t.state, "reason": t.reason} for t in trials if t.state == "failed"][:20],
    )


def check_beats_defaults(trials: Sequence[TrialRecord]) -> CheckResult:
    """A searched trial has a lower loss than the YAML's own parameters; never stops anything."""
    best, default = best_trial(trials), trials[0].value if trials else None
    if best is None or default is None or best.value is None:
        return CheckResult(False, "The YAML's own parameters did not complete a trial.", warn_only=True)
    return CheckResult(
        passed=best.value < default,
        summary=f"Best evaluation loss {best.value:.4f} (trial {best.number}), the YAML's own parameters {default:.4f}."
        + ("" if best.value < default else " Nothing better was found: search more trials or another space."),
        numbers={"best_value": best.value, "default_value": default},
        warn_only=True,
    )
