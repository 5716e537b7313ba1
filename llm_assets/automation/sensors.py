"""Sensors of a lineage: new source content starts ingestion, and a failed run reaches a person.

The new-data sensor decides by content, not by time: a touched but unchanged file starts nothing. Its run key names the
content and how often content changed before, so a crash between tick and launch starts nothing twice, and data that
returns to an earlier state is still ingested. What lies in a bucket is told by its entity tags and never fetched; the
tables of a server tell nothing and need a schedule.
"""

import hashlib
import json
import os
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.data.source_files import SourceFile, files_of
from llm_assets.data.sources import SourceConfig, SourceMissing, redacted

SETTLE_SECONDS = 10  # a file younger than this may still be being written
ALERT_WEBHOOK_VARIABLE = "LLM_ASSETS_ALERT_WEBHOOK"


def default_sensor_status() -> dg.DefaultSensorStatus:
    """Running where ``LLM_ASSETS_AUTOMATION=running``; stopped on a laptop."""
    running = os.environ.get("LLM_ASSETS_AUTOMATION") == "running"
    return dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED


def build_new_data_sensor(model: str, patterns: Sequence[str], job_name: str) -> dg.SensorDefinition:
    """Start the ingestion job once per new content of the files that match the source patterns."""
    watched = ", ".join(map(redacted, patterns))

    @dg.sensor(
        name=f"{model}_new_data",
        job_name=job_name,
        minimum_interval_seconds=60,
        default_status=default_sensor_status(),
        description=f"Ingests {watched} again when their content changes; retraining follows from that.",
    )
    def new_data(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        cursor = json.loads(context.cursor) if context.cursor else {"changes": 0, "files": {}}
        if _still_being_written(patterns):
            return dg.SkipReason(f"A watched file is younger than {SETTLE_SECONDS} s and may still be being written.")
        files = observe_files(patterns, cursor["files"])
        if not files:
            return dg.SkipReason(f"No file matches {watched}.")
        content = content_digest(files)
        if content == content_digest(cursor["files"]):
            return dg.SensorResult(
                skip_reason="The content is unchanged.", cursor=json.dumps({**cursor, "files": files})
            )
        changes = cursor["changes"] + 1
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{content}-{changes}", tags={"llm_assets/content": content})],
            cursor=json.dumps({"changes": changes, "files": files}),
        )

    return new_data


def observe_files(patterns: Sequence[str], known: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What every matching file is now: its state, and a SHA-256 that changes when its content does.

    A local file is hashed again only when its state moved. A file at a URL is not fetched: its entity tag, or its size
    and modification time where the store has no tags, stand for its content.
    """
    observed = {}
    for name, file in _matching(patterns).items():
        state = file.state
        entry = dict(known.get(name, {}))
        if entry.get("state") != state:
            entry = {
                "state": state,
                "sha256": _remote_digest(state) if file.filesystem else _file_digest(Path(file.path)),
            }
        observed[name] = entry
    return observed


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remote_digest(state: Mapping[str, Any]) -> str:
    meant = state["tags"] or [state["bytes"], state["modified_seconds"]]
    return hashlib.sha256(json.dumps(meant).encode()).hexdigest()


def content_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Digest of the names and bytes of a set of files; modification times do not count."""
    listing = "".join(f"{name}\0{entry['sha256']}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def _matching(patterns: Sequence[str]) -> dict[str, SourceFile]:
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        try:
            files = files_of(SourceConfig(path=pattern, format="parquet"))  # whatever they hold: nothing is read here
        except SourceMissing:
            continue
        found |= {str(file.path): file for file in files}
    return dict(sorted(found.items()))


def _still_being_written(patterns: Sequence[str]) -> bool:
    return any(time.time() - file.state["modified_seconds"] < SETTLE_SECONDS for file in _matching(patterns).values())


def build_failure_sensor() -> dg.SensorDefinition:
    """Tell a person about a failed run: a line in the daemon's log, and a POST where a webhook is configured."""

    @dg.run_failure_sensor(
        name="run_failure_alert",
        default_status=default_sensor_status(),
        monitor_all_code_locations=False,
        description=f"Posts each failed run as JSON to ${ALERT_WEBHOOK_VARIABLE}, when set, and logs it.",
    )
    def run_failure_alert(context: dg.RunFailureSensorContext) -> None:
        alert = failure_alert(context)
        context.log.error(alert["text"])
        if webhook := os.environ.get(ALERT_WEBHOOK_VARIABLE):
            post_json(webhook, alert)

    return run_failure_alert


def failure_alert(context: dg.RunFailureSensorContext) -> dict[str, Any]:
    """What failed and why, in the shape chat webhooks take: a `text`, and the run's fields beside it."""
    failed_steps = [event.step_key for event in context.get_step_failure_events()]
    return {
        "text": f"Run {context.dagster_run.run_id} failed in {', '.join(filter(None, failed_steps)) or 'no step'}: "
        f"{context.failure_event.message}",
        "run_id": context.dagster_run.run_id,
        "steps": failed_steps,
        "tags": dict(context.dagster_run.tags),
    }


def post_json(url: str, body: Mapping[str, Any]) -> None:
    """POST a JSON body; an HTTP error or a timeout of 10 s fails the sensor tick, which Dagster retries."""
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10):
        pass
