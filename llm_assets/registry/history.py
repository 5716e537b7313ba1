"""The versions of a name, newest first: what each scored, what the gate said, which aliases it holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_assets.registry.evidence import ROLLED_BACK_TAG, Evidence, read_evidence
from llm_assets.registry.promote import aliases
from llm_assets.registry.registration import SCORE_TAG
from llm_assets.registry.tracking_store import TrackingStore


@dataclass(frozen=True)
class PastVersion:
    """One line of a name's history.

    Attributes:
        version: Version number.
        score: `metric`, `value`, `low`, `high` and `rows` of the primary metric; empty for foreign versions.
        evidence: The gate's verdict; None when no gate has seen it.
        aliases: Aliases it holds.
        rolled_back_to: Version that was put in its place by a person; empty when none was.
    """

    version: str
    score: Mapping[str, Any]
    evidence: Evidence | None
    aliases: Sequence[str]
    rolled_back_to: str


def read_history(name: str, store: TrackingStore, limit: int = 50) -> list[PastVersion]:
    """The newest versions of a name, newest first; empty when there is no such name."""
    client = store.client()
    found = client.search_model_versions(f"name = '{name}'", max_results=limit, order_by=["version_number DESC"])
    held = aliases(name, store)
    return [
        PastVersion(
            version=str(entry.version),
            score=json.loads(entry.tags.get(SCORE_TAG, "{}")),
            evidence=read_evidence(entry.tags),
            aliases=sorted(alias for alias, version in held.items() if version == str(entry.version)),
            rolled_back_to=entry.tags.get(ROLLED_BACK_TAG, ""),
        )
        for entry in found
    ]


def history_rows(history: Sequence[PastVersion]) -> list[dict[str, Any]]:
    """As a table for a person."""
    return [
        {
            "version": int(past.version),
            "aliases": ", ".join(past.aliases),
            past.score.get("metric", "score"): past.score.get("value"),
            "low": past.score.get("low"),
            "high": past.score.get("high"),
            "gate": _gate(past),
            "says": past.evidence.summary if past.evidence else "",
        }
        for past in history
    ]


def _gate(past: PastVersion) -> str:
    if past.rolled_back_to:
        return f"rolled back to {past.rolled_back_to}"
    if past.evidence is None:
        return "not promoted"
    return {"gate": "passed", "rollback": "in use again", "copy": "copied"}[past.evidence.kind]
