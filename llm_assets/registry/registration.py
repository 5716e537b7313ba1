"""One identity on its way into a registry: stored first where nobody looks, made a version as the last step.

Two processes may register the same sources at the same time, on any machines: the lower number stays. What a process
left behind is used if it was whole, and deleted if it was not and its process is gone.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.evaluation.scoreboard import MERGED
from llm_assets.registry.logged_model import LoggedModelDraft, version_params
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.placement import local_directory

IDENTITY_TAG = "llm_assets.identity"
MODEL_ID_TAG = "llm_assets.model_id"
PROMPTS_TAG = "llm_assets.prompts"
TASK_TAG = "llm_assets.task"
SCORE_TAG = "llm_assets.score"
OWNER_TAG = "llm_assets.owner"
MAX_DESCRIPTION = 5000  # characters of the registry's description column
ABANDONED_HOURS = 24  # of an unfinished upload by another machine, whose processes cannot be seen from here


class NameTaken(LLMAssetsError):
    """The registered name belongs to a prompt."""


@dataclass(frozen=True)
class Registered:
    """A registered version and how it came about.

    Attributes:
        name: Registered name.
        version: Version number as MLflow writes it.
        model_id: Logged model behind it.
        run_id: MLflow run with its parameters and metrics.
        copied_bytes: Bytes stored a second time; 0 where files could be linked, or nothing was done.
        created: False when the same sources were registered before.
    """

    name: str
    version: str
    model_id: str
    run_id: str
    copied_bytes: int
    created: bool

    @property
    def uri(self) -> str:
        """MLflow's URI of the version."""
        return f"models:/{self.name}/{self.version}"


def find_version(client: Any, name: str, digest: str) -> Registered | None:
    """The lowest version of `name` with that identity."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{IDENTITY_TAG}` = '{digest}'")
    if not found:
        return None
    first = min(found, key=lambda entry: int(entry.version))
    model_id = first.tags[MODEL_ID_TAG]
    return Registered(name, str(first.version), model_id, first.run_id, copied_bytes=0, created=False)


@dataclass(frozen=True)
class Registration:
    """One identity on its way into a registry.

    Attributes:
        client: MLflow client of that registry.
        experiment: Experiment its run and logged model belong to.
        name: Registered name.
        digest: Identity of what is registered.
        tags: Of the run and of the version.
    """

    client: Any
    experiment: str
    name: str
    digest: str
    tags: Mapping[str, str]

    def complete(
        self,
        placed: Mapping[str, Path],
        write_root: Callable[[Path, Any, str], None],
        metadata: Mapping[str, Any],
        log: Callable[[str], None],
    ) -> Registered:
        """Store what is placed and create the version, or continue with what a crash left.

        Args:
            placed: Path in the version to the directory stored there.
            write_root: Writes MLmodel and its like, given a directory, the logged model and the run.
            metadata: As `contents.describe` returns it.
            log: Receives progress.
        """
        run_id, model_id, copied_bytes = self.run_id(), self.leftover(), 0
        if model_id:
            log(f"found {model_id}, whole but without a version")
        else:
            draft = self.draft(run_id, metadata)
            model_id = draft.model.model_id
            copied_bytes = draft.fill(placed, lambda root: write_root(root, draft.model, run_id), metadata, log)
        version, model_id = self.create_version(model_id, run_id, metadata)
        self.client.set_terminated(run_id)
        log(f"registered {self.name} version {version} ({copied_bytes:,} bytes copied)")
        return Registered(self.name, version, model_id, run_id, copied_bytes, created=True)

    def leftover(self) -> str | None:
        """The whole logged model a crash left without a version; unfinished ones nobody works on are deleted."""
        whole = None
        for model in self._models():
            if model.status.name == "READY":
                whole = model.model_id
            elif model.status.name == "FAILED" or is_abandoned(model):
                self._delete(model.model_id)
        return whole

    def _models(self) -> Sequence[Any]:
        same = f"tags.`{IDENTITY_TAG}` = '{self.digest}'"
        return self.client.search_logged_models([self.experiment], filter_string=same)

    def _delete(self, model_id: str) -> None:
        """Delete a logged model, and its files where they are ours to delete; a server keeps them for `mlflow gc`."""
        directory = local_directory(self.client.get_logged_model(model_id).artifact_location)
        if directory:
            shutil.rmtree(directory, ignore_errors=True)
        self.client.delete_logged_model(model_id)

    def run_id(self) -> str:
        """The MLflow run of this registration, begun now or by an attempt that crashed."""
        same = f"tags.`{IDENTITY_TAG}` = '{self.digest}'"
        begun = self.client.search_runs([self.experiment], same, max_results=1)
        if begun:
            return begun[0].info.run_id
        tags = {**self.tags, IDENTITY_TAG: self.digest}
        return self.client.create_run(self.experiment, run_name=f"register {self.name}", tags=tags).info.run_id

    def draft(self, run_id: str, metadata: Mapping[str, Any]) -> LoggedModelDraft:
        """A pending logged model."""
        model = self.client.create_logged_model(
            self.experiment,
            name=self.name.replace(".", "_"),
            source_run_id=run_id,
            tags={IDENTITY_TAG: self.digest, OWNER_TAG: owner()},
            params=version_params(metadata),
            model_type="llm",
        )
        return LoggedModelDraft(self.client, model, run_id)

    def create_version(self, model_id: str, run_id: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """Create the version with all its tags in one transaction; returns its number and its logged model.

        Of two that processes make of one identity at the same time, the one with the higher number goes again.
        """
        ensure_name(self.client, self.name)
        told = {
            TASK_TAG: metadata["task"],
            PROMPTS_TAG: json.dumps([prompt["uri"] for prompt in metadata["prompts"]]),
            SCORE_TAG: json.dumps({"metric": metadata["scoreboard"]["primary"], **metadata["scores"].get(MERGED, {})}),
        }
        created = self.client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags={**self.tags, **told, IDENTITY_TAG: self.digest, MODEL_ID_TAG: model_id},
            description=write_model_card(self.name, metadata)[:MAX_DESCRIPTION],
            model_id=model_id,
        )
        version = str(created.version)
        first = find_version(self.client, self.name, self.digest)
        if first and first.version != version:
            self.client.delete_model_version(self.name, version)
            if first.model_id != model_id:
                self._delete(model_id)
            return first.version, first.model_id
        links = json.dumps([{"name": self.name, "version": version}])
        self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": links})  # for the UI and `mlflow gc`
        return version, model_id


def ensure_name(client: Any, name: str) -> None:
    """Make the registered name unless there is one.

    Raises:
        NameTaken: the name belongs to a prompt.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if client.get_prompt(name):
            raise NameTaken(
                f"{name!r} is a prompt, and MLflow keeps prompts and models under one list of names. Set "
                f"registry.name to another, or rename the prompt."
            ) from None


def owner() -> str:
    """This process, told from a later one that gets the same number."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def is_abandoned(model: Any) -> bool:
    """Whether nobody works on a pending logged model any more."""
    host, _, process = model.tags.get(OWNER_TAG, "").partition(":")
    if host and host != socket.gethostname():
        return time.time() - model.creation_timestamp / 1000 > ABANDONED_HOURS * 3600
    number, _, started = process.partition(":")
    return not number.isdigit() or _started(int(number)) != started


def _started(process: int) -> str:
    """Start time of a process in the kernel's ticks; empty when there is none."""
    stat = Path(f"/proc/{process}/stat")
    return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else ""
