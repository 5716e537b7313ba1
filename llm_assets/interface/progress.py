"""What a run says while it works, as lines for a person, whether it runs here or behind a web server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import dagster as dg

Log = Callable[[str], None]


@dataclass(frozen=True)
class RunEvent:
    """One thing that happened in a run.

    Attributes:
        kind: What it was.
        step: Asset or op it happened in, with slashes; empty for the run itself.
        text: Log line, duration, verdict or reason.
        name: Name of a check.
    """

    kind: Literal["started", "finished", "said", "warned", "check_failed", "failed", "run_failed"]
    step: str
    text: str = ""
    name: str = ""

    def line(self) -> str:
        """The event in one line."""
        match self.kind:
            case "started":
                return f"▶ {self.step}"
            case "finished":
                return f"✓ {self.step}{self.text}"
            case "warned" | "check_failed":
                mark = "!" if self.kind == "warned" else "✗"
                return f"{mark} {self.step}: check {self.name}: {self.text}"
            case "failed":
                return f"✗ {self.step} failed: {self.text}"
            case "run_failed":
                return f"✗ run failed: {self.text}"
            case _:
                return f"      {self.step}: {self.text}"

    @classmethod
    def from_entry(cls, entry: dg.EventLogEntry) -> Self | None:
        """Read an entry of the instance's event log; None where it is not worth a line."""
        step, event = (entry.step_key or "").replace("__", "/"), entry.dagster_event
        if event is None:
            return cls.said(step, entry.user_message)
        told = None
        match event.event_type_value:
            case "STEP_START":
                told = cls("started", step)
            case "STEP_SUCCESS":
                told = cls("finished", step, f"  ({event.step_success_data.duration_ms / 1000:.1f} s)")
            case "ASSET_CHECK_EVALUATION" if not event.asset_check_evaluation_data.passed:
                evaluation = event.asset_check_evaluation_data
                kind = "warned" if evaluation.severity == dg.AssetCheckSeverity.WARN else "check_failed"
                told = cls(kind, step, evaluation.description or "", evaluation.check_name)
            case "STEP_FAILURE":
                error = event.step_failure_data.error
                cause = error.cause if error and error.cause else error
                told = cls("failed", step, cause.message.strip() if cause else "no reason given")
            case "PIPELINE_FAILURE":
                told = cls("run_failed", "", event.message or "no reason given")
        return told

    @classmethod
    def from_graphql(cls, event: Mapping[str, Any]) -> Self | None:
        """Read an event as the web server's API gives it; None where it is not worth a line."""
        step, told = (event.get("stepKey") or "").replace("__", "/"), None
        match event["__typename"]:
            case "LogMessageEvent":
                told = cls.said(step, event["message"])
            case "ExecutionStepStartEvent":
                told = cls("started", step)
            case "ExecutionStepSuccessEvent":
                told = cls("finished", step)
            case "AssetCheckEvaluationEvent" if not event["evaluation"]["success"]:
                evaluation = event["evaluation"]
                kind = "warned" if evaluation["severity"] == "WARN" else "check_failed"
                told = cls(kind, step, evaluation["description"] or "", evaluation["checkName"])
            case "ExecutionStepFailureEvent":
                error = event["error"] or {"message": "no reason given", "causes": []}
                causes = [cause["message"] for cause in error["causes"]]
                told = cls("failed", step, (causes or [error["message"]])[0].strip())
            case "RunFailureEvent":
                told = cls("run_failed", "", event["message"])
        return told

    @classmethod
    def said(cls, step: str, message: str) -> Self | None:
        """A log line of a step; none for lines that only repeat a failure already told."""
        repeats = message.startswith("Dependencies for step")
        return cls("said", step, message) if step and not repeats else None


class FailureNote:
    """Remembers why a run failed, so that its error names the step and the reason."""

    def __init__(self) -> None:
        self.failures: list[RunEvent] = []

    def notice(self, event: RunEvent) -> None:
        """Keep an event that explains a failure."""
        if event.kind in ("failed", "check_failed", "run_failed"):
            self.failures.append(event)

    def reason(self) -> str:
        """The first failed check or step, in words."""
        checks = [event for event in self.failures if event.kind == "check_failed"]
        steps = [event for event in self.failures if event.kind == "failed"]
        for event in (checks or steps or self.failures)[:1]:
            return event.line().removeprefix("✗ ")
        return "no reason given"
