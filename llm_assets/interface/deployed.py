"""Work on a deployed Dagster: find the lineage, refuse what it would not do, start its job and follow it.

The deployment runs its own configuration, which its jobs carry as metadata. A call that says otherwise is refused with
every difference named: a different setting belongs into the deployed `defs.yaml`, not into an argument that is lost.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_assets.components.published import LINEAGE_METADATA
from llm_assets.core import LLMAssetsError
from llm_assets.interface.graphql import DagsterAPI, RemoteAsset, RemoteJob, metadata_values
from llm_assets.interface.progress import FailureNote, Log, RunEvent

POLL_SECONDS = 1.0
ENDED = ("SUCCESS", "FAILURE", "CANCELED")


class NotDeployed(LLMAssetsError):
    """The deployment has no lineage of that name."""


class DiffersFromDeployed(LLMAssetsError):
    """Arguments that the deployed lineage is not configured with."""


class RemoteRunFailed(LLMAssetsError):
    """A run on the deployment failed or was cancelled; names the step, the reason and the run's page."""


@dataclass
class RemoteRun:
    """What a finished run left in its events.

    Attributes:
        run_id: Dagster's id.
        outputs: Metadata of the outputs of its ops, by name.
    """

    run_id: str
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def notice(self, event: Mapping[str, Any]) -> None:
        """Keep the metadata of an event."""
        if event["__typename"] == "ExecutionStepOutputEvent":
            self.outputs[event["outputName"]] = metadata_values(event["metadataEntries"])


def deployed_job(api: DagsterAPI, registered_name: str, suffix: str) -> tuple[RemoteJob, Mapping[str, Any]]:
    """A lineage's job and its deployed configuration, found by the name it registers under or its own.

    Raises:
        NotDeployed: lists the lineages there are.
    """
    by_name: dict[str, RemoteJob] = {}
    lineages = set()
    for job in api.jobs():
        if LINEAGE_METADATA in job.metadata and job.name.endswith(suffix):
            deployed = job.metadata[LINEAGE_METADATA]
            lineages.add(deployed["model"])
            by_name[deployed["registry"]["name"] or deployed["model"]] = job
            by_name.setdefault(deployed["model"], job)
    if registered_name not in by_name:
        known = ", ".join(sorted(lineages)) or "none"
        raise NotDeployed(
            f"{api.url} has no lineage that registers {registered_name!r}. Lineages there: {known}. Deploy a defs.yaml "
            "for it, or leave trigger_remote out to run here."
        )
    job = by_name[registered_name]
    return job, job.metadata[LINEAGE_METADATA]


def refuse_differences(given: Mapping[str, Any], deployed: Mapping[str, Any]) -> None:
    """Refuse arguments that the deployed configuration does not have.

    Raises:
        DiffersFromDeployed: one line per difference.
    """
    if found := list(differences(given, deployed)):
        lines = [f"{path}: deployed {there!r}, asked {here!r}" for path, here, there in found]
        raise DiffersFromDeployed(
            f"The deployed lineage {deployed['model']} is configured otherwise; it would run its own settings:\n  "
            + "\n  ".join(lines)
            + "\nChange its defs.yaml and deploy, or leave these arguments out."
        )


def differences(given: Any, deployed: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, given and deployed value of everything given that is not what is deployed."""
    if isinstance(given, Mapping) and isinstance(deployed, Mapping):
        for name, value in given.items():
            yield from differences(value, deployed.get(name), f"{path}.{name}" if path else str(name))
    elif isinstance(given, (list, tuple)) and isinstance(deployed, (list, tuple)) and len(given) == len(deployed):
        for place, (here, there) in enumerate(zip(given, deployed, strict=True)):
            yield from differences(here, there, f"{path}[{place}]")
    elif given != deployed:
        yield path, given, deployed


def make_pending(api: DagsterAPI, train: RemoteJob, model: str, log: Log) -> str | None:
    """Make what is missing, stale or red of a lineage on the deployment, its sources read again first.

    Returns:
        The last run's id; None where nothing was to be made and the deployment has no ingest job.

    Raises:
        RemoteRunFailed: a run failed or was cancelled.
    """
    run_id, raw, assets = None, f"{model}/raw_dataset", api.assets(train)
    to_make = pending(assets)
    ingest = [job for job in api.jobs() if (job.name, job.location) == (f"{model}_ingest", train.location)]
    if ingest and (raw not in to_make or any(asset.is_made for asset in assets if raw in asset.upstream)):
        run_id = run_to_end(api, ingest[0], {}, log).run_id
        to_make = pending(api.assets(train))
    if to_make:
        run_id = run_to_end(api, train, {}, log, to_make).run_id
    else:
        log(f"{model}: everything is made and green")
    return run_id


def pending(assets: Sequence[RemoteAsset]) -> list[str]:
    """Keys of those that are missing, stale or red, and of everything among them below those."""
    chosen = {asset.key for asset in assets if not asset.is_current}
    while below := {asset.key for asset in assets if asset.key not in chosen and chosen & set(asset.upstream)}:
        chosen |= below
    return [asset.key for asset in assets if asset.key in chosen]


def run_to_end(
    api: DagsterAPI, job: RemoteJob, run_config: Mapping[str, Any], log: Log, assets: Sequence[str] = ()
) -> RemoteRun:
    """Start a job, or of its assets only those named, and wait for its end, telling what happens.

    An interrupted wait leaves the run working: it belongs to the deployment.

    Raises:
        RemoteRunFailed: the run failed or was cancelled.
    """
    run = RemoteRun(api.launch(job, run_config, {"llm_assets/triggered_by": "python"}, assets))
    log(f"Started {job.name} on {api.url}: {api.run_link(run.run_id)}")
    note, cursor, status, more = FailureNote(), None, "QUEUED", False
    while status not in ENDED or more:
        if not more:
            time.sleep(POLL_SECONDS)
        status, events, cursor, more = api.events(run.run_id, cursor)
        for event in events:
            run.notice(event)
            told = RunEvent.from_graphql(event)
            if told:
                note.notice(told)
                log(told.line())
        more = more or (status in ENDED and bool(events))  # the last events may be written after the status
    if status != "SUCCESS":
        raise RemoteRunFailed(f"{job.name} ended as {status}: {note.reason()}. Its page: {api.run_link(run.run_id)}")
    return run
