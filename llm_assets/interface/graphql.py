"""A deployed Dagster, spoken to through its web server's GraphQL interface and nothing else.

Plain HTTP from the standard library: the caller's machine needs no Dagster configuration, no code location and no
access to its database.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.interface.login import without_login

URL_VARIABLE, TOKEN_VARIABLE = "LLM_ASSETS_DAGSTER_URL", "LLM_ASSETS_DAGSTER_TOKEN"
TIMEOUT_SECONDS = 60

ENTRY = """
fragment Entry on MetadataEntry { __typename label
  ... on IntMetadataEntry { intRepr } ... on FloatMetadataEntry { floatValue } ... on TextMetadataEntry { text }
  ... on UrlMetadataEntry { url } ... on BoolMetadataEntry { boolValue } ... on JsonMetadataEntry { jsonString }
  ... on PathMetadataEntry { path } }
"""
JOBS = """
query Jobs { repositoriesOrError { __typename
  ... on RepositoryConnection { nodes { name location { name } jobs { name
    metadataEntries { label ... on JsonMetadataEntry { jsonString } } } } }
  ... on PythonError { message } } }
"""
LAUNCH = """
mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PipelineNotFoundError { message }
  ... on UnauthorizedError { message }
  ... on InvalidSubsetError { message }
  ... on PythonError { message } } }
"""
EVENTS = """
query Events($run: ID!, $cursor: String) {
  runOrError(runId: $run) { __typename ... on Run { status } ... on PythonError { message } }
  logsForRun(runId: $run, afterCursor: $cursor, limit: 500) { __typename
    ... on PythonError { message }
    ... on EventConnection { cursor hasMore events { __typename
      ... on MessageEvent { message stepKey }
      ... on ExecutionStepFailureEvent { error { message causes { message } } }
      ... on AssetCheckEvaluationEvent { evaluation { success severity checkName description } }
      ... on ExecutionStepOutputEvent { outputName metadataEntries { ...Entry } } } } } }
"""
ASSETS = """
query Assets($job: PipelineSelector!) { assetNodes(pipeline: $job) {
  assetKey { path } dependencyKeys { path } staleStatus
  assetMaterializations(limit: 1) { metadataEntries { ...Entry } }
  assetChecksOrError { ... on AssetChecks { checks {
    executionForLatestMaterialization { status evaluation { severity } } } } } } }
"""


class DagsterUnreachable(LLMAssetsError):
    """No deployed Dagster is named, or it does not answer as one."""


class RemoteRefused(LLMAssetsError):
    """The deployment answered that it cannot do what was asked."""


@dataclass(frozen=True)
class RemoteJob:
    """A job of the deployment.

    Attributes:
        name: Its name.
        location: Code location it is loaded from.
        repository: Repository within it.
        metadata: Its JSON metadata by label.
    """

    name: str
    location: str
    repository: str
    metadata: Mapping[str, Any]

    @property
    def selector(self) -> dict[str, str]:
        """How queries name it."""
        return {
            "pipelineName": self.name,
            "repositoryName": self.repository,
            "repositoryLocationName": self.location,
        }


@dataclass(frozen=True)
class RemoteAsset:
    """An asset of a job as it is now.

    Attributes:
        key: With slashes.
        upstream: Keys of what it is made from.
        is_made: Whether there is anything of it.
        is_current: Made from what its inputs are now, by the code that is deployed, with every check passed or warning.
        metadata: Of its last materialization, as plain values.
    """

    key: str
    upstream: tuple[str, ...]
    is_made: bool
    is_current: bool
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, node: Mapping[str, Any]) -> "RemoteAsset":
        """From an asset node of the API."""
        checks = [check["executionForLatestMaterialization"] for check in node["assetChecksOrError"].get("checks", ())]
        made = node["assetMaterializations"]
        return cls(
            key="/".join(node["assetKey"]["path"]),
            upstream=tuple("/".join(key["path"]) for key in node["dependencyKeys"]),
            is_made=bool(made),
            is_current=node["staleStatus"] == "FRESH" and all(map(_passed, checks)),
            metadata=metadata_values(made[0]["metadataEntries"]) if made else {},
        )


@dataclass(frozen=True)
class DagsterAPI:
    """The GraphQL interface of one web server."""

    url: str
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def resolve(cls, url: str | None = None) -> "DagsterAPI":
        """The given server, else the environment's.

        Raises:
            DagsterUnreachable: neither names one.
        """
        chosen = url or os.environ.get(URL_VARIABLE)
        if not chosen:
            raise DagsterUnreachable(
                f"trigger_remote needs the deployed Dagster. Pass dagster_url, such as https://dagster.example.com, or "
                f"set {URL_VARIABLE}; {TOKEN_VARIABLE} is sent as a bearer token where it is set."
            )
        url, login = without_login(chosen.rstrip("/"))
        token = os.environ.get(TOKEN_VARIABLE)
        return cls(url, f"Bearer {token}" if token else login)

    def run_link(self, run_id: str) -> str:
        """Page of a run."""
        return f"{self.url}/runs/{run_id}"

    def query(self, document: str, **variables: Any) -> dict[str, Any]:
        """The `data` of an answer.

        Raises:
            DagsterUnreachable: nobody answers, or not with GraphQL.
            RemoteRefused: the server reports errors.
        """
        login = {"Authorization": self.authorization} if self.authorization else {}
        headers = {"Content-Type": "application/json", **login}
        body = json.dumps({"query": document, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:500]
            raise DagsterUnreachable(f"{self.url}/graphql answered {error.code}: {text}. {_check(self.url)}") from error
        except (OSError, ValueError) as error:
            raise DagsterUnreachable(f"{self.url}/graphql does not answer: {error}. {_check(self.url)}") from error
        if answer.get("errors"):
            raise RemoteRefused(f"{self.url}: {answer['errors'][0]['message']}")
        return answer["data"]

    def jobs(self) -> list[RemoteJob]:
        """Every job the deployment has loaded."""
        found = _expect(self.query(JOBS)["repositoriesOrError"], "RepositoryConnection")
        return [
            RemoteJob(job["name"], repository["location"]["name"], repository["name"], _json_metadata(job))
            for repository in found["nodes"]
            for job in repository["jobs"]
        ]

    def assets(self, job: RemoteJob) -> list[RemoteAsset]:
        """The assets of a job with their state."""
        return [RemoteAsset.read(node) for node in self.query(ASSETS + ENTRY, job=job.selector)["assetNodes"]]

    def launch(
        self, job: RemoteJob, run_config: Mapping[str, Any], tags: Mapping[str, str], assets: Sequence[str] = ()
    ) -> str:
        """Start a job, or of its assets only those named; returns the run's id.

        Raises:
            RemoteRefused: carries the server's reason.
        """
        params = {
            "selector": job.selector
            | ({"assetSelection": [{"path": key.split("/")} for key in assets]} if assets else {}),
            "runConfigData": run_config,
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        return _expect(self.query(LAUNCH, params=params)["launchRun"], "LaunchRunSuccess")["run"]["runId"]

    def events(self, run_id: str, cursor: str | None) -> tuple[str, list[dict[str, Any]], str | None, bool]:
        """Status of a run, its events after `cursor`, the next cursor, and whether there are more already."""
        answer = self.query(EVENTS + ENTRY, run=run_id, cursor=cursor)
        status = _expect(answer["runOrError"], "Run")["status"]
        page = _expect(answer["logsForRun"], "EventConnection")
        return status, page["events"], page["cursor"], page["hasMore"]


def metadata_values(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Metadata entries as plain values by label; kinds without one, such as pictures, are left out."""
    read = {
        "IntMetadataEntry": lambda entry: int(entry["intRepr"]),
        "FloatMetadataEntry": lambda entry: entry["floatValue"],
        "TextMetadataEntry": lambda entry: entry["text"],
        "UrlMetadataEntry": lambda entry: entry["url"],
        "BoolMetadataEntry": lambda entry: entry["boolValue"],
        "PathMetadataEntry": lambda entry: entry["path"],
        "JsonMetadataEntry": lambda entry: json.loads(entry["jsonString"]),
    }
    return {e["label"]: read[e["__typename"]](e) for e in entries if e["__typename"] in read}


def _json_metadata(job: Mapping[str, Any]) -> dict[str, Any]:
    return {e["label"]: json.loads(e["jsonString"]) for e in job["metadataEntries"] if "jsonString" in e}


def _passed(execution: Mapping[str, Any] | None) -> bool:
    """Whether a check lets its asset be used; a failed warning does, one that never ran does not."""
    if execution is None or execution["status"] == "SUCCEEDED":
        return execution is not None
    return execution["status"] == "FAILED" and (execution["evaluation"] or {}).get("severity") == "WARN"


def _expect(answer: dict[str, Any], kind: str) -> dict[str, Any]:
    if answer["__typename"] == kind:
        return answer
    errors = answer.get("errors") or [answer]
    raise RemoteRefused(f"{answer['__typename']}: {'; '.join(error.get('message', 'no reason') for error in errors)}")


def _check(url: str) -> str:
    return f"Open {url} in a browser, and correct dagster_url or {URL_VARIABLE} ({TOKEN_VARIABLE} holds a token)."
