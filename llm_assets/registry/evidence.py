"""Why a version may be used: the gate's verdict, kept on the version itself and carried along when it is copied.

Inference reads it from the version it is about to run. So a challenger that was refused, or a check that turned red on
data nobody serves, stops nothing that was promoted before.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.registry.tracking_store import TrackingStore

GATE_TAG = "llm_assets.gate"
ROLLED_BACK_TAG = "llm_assets.rolled_back"


class NotPromoted(LLMAssetsError):
    """A version without a passed gate on record."""


@dataclass(frozen=True)
class Evidence:
    """A gate's verdict on a version.

    Attributes:
        kind: How it came to hold the alias: past the gate, by going back, or copied from another environment.
        passed: Whether it may be used.
        summary: The deciding numbers in a sentence.
        compared_with: Version it was compared with on the same rows; None for the first.
        numbers: Of the comparison.
        checks: Blocking checks that had passed before it.
        origin: Tags of the run that decided.
    """

    kind: Literal["gate", "rollback", "copy"]
    passed: bool
    summary: str
    compared_with: str | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[str] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        verdict: CheckResult,
        compared_with: str | None,
        checks: Sequence[str],
        origin: Mapping[str, str],
        kind: Literal["gate", "rollback", "copy"] = "gate",
    ) -> "Evidence":
        """The verdict of a gate, with what was on record around it."""
        numbers, names = dict(verdict.numbers), sorted(checks)
        return cls(kind, verdict.passed, verdict.summary, compared_with, numbers, names, dict(origin))

    def as_json(self) -> dict[str, Any]:
        """As the tag and the run's artifact keep it."""
        return {**asdict(self), "checks": list(self.checks)}


def write_evidence(store: TrackingStore, name: str, version: str, evidence: Evidence) -> None:
    """Keep it on the version as a tag, and on the version's run as `gate/<name>-<version>.json`."""
    client = store.client()
    text = json.dumps(evidence.as_json(), sort_keys=True)
    client.set_model_version_tag(name, version, GATE_TAG, text)
    run_id = client.get_model_version(name, version).run_id
    if run_id:
        client.log_text(run_id, json.dumps(evidence.as_json(), indent=1, sort_keys=True), f"gate/{name}-{version}.json")


def read_evidence(tags: Mapping[str, str]) -> Evidence | None:
    """What a version's tags say; None when no gate has seen it."""
    return Evidence(**json.loads(tags[GATE_TAG])) if tags.get(GATE_TAG) else None
