"""Push the parts of a version to the Hugging Face Hub, each to a repository of its own, so that each loads by its name.

Only files whose content differs from what the branch holds are sent, in one commit per repository. An interrupted push
continues where it stopped, because large files are stored by content before the commit that names them. The token is
read from the environment and appears in no log, page or message.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.registry.contents import ADAPTER_PATH
from llm_assets.registry.hub_card import hub_card
from llm_assets.registry.hub_config import HubConfig
from llm_assets.registry.versions import RegisteredVersion
from llm_assets.training.identity import MANIFEST, file_sha256

CARD = "README.md"
LEFT_OUT = {MANIFEST}  # the artifact store's own
LEFT_OUT_SUFFIX = ".parquet"  # training curves; the Hub takes them for data sets
NOT_OURS = {".gitattributes"}


class HubTokenMissing(LLMAssetsError):
    """Nothing to authenticate with."""


class HubRefused(LLMAssetsError):
    """The Hub answered with an error, or did not answer."""


@dataclass(frozen=True)
class Pushed:
    """A repository after a push.

    Attributes:
        part: `merged`, `adapter`, or a variant's name.
        repo: Repository.
        commit: Commit the branch is at.
        uploaded_files: Files that were sent; 0 when it held all of them.
        uploaded_bytes: Their size.
    """

    part: str
    repo: str
    commit: str
    uploaded_files: int
    uploaded_bytes: int


def push_version(
    version: RegisteredVersion, config: HubConfig, base: str | None, log: Callable[[str], None]
) -> list[Pushed]:
    """Push what `config.parts` names and the version holds.

    Args:
        version: A version with its files at hand.
        config: Repositories and what goes there.
        base: Hub repository of the base model, for the cards; None if it is from elsewhere.
        log: Receives a line per repository.

    Raises:
        HubTokenMissing: `HF_TOKEN` is not set.
        HubRefused: the Hub refuses or cannot be reached.
    """
    hub = _Hub.connect(config)
    pushed = []
    for part, repo in config.repositories(tuple(version.metadata["variants"])).items():
        directory = version.directory / ADAPTER_PATH if part == "adapter" else version.variant_directory(part)
        card = hub_card(version, part, config.repo, config.base_model or base, config.license)
        result = hub.push(part, repo, directory, card, f"{version.name} version {version.version}: {part}")
        sent = f"{result.uploaded_files} files, {result.uploaded_bytes:,} bytes sent"
        log(f"{repo}: {sent}; at commit {result.commit[:12]}")
        pushed.append(result)
    return pushed


@dataclass(frozen=True)
class _Hub:
    api: Any
    config: HubConfig

    @classmethod
    def connect(cls, config: HubConfig) -> "_Hub":
        from huggingface_hub import HfApi

        token = os.environ.get("HF_TOKEN")
        if not token:
            raise HubTokenMissing(
                f"Pushing to {config.repo} needs a token with write access: set HF_TOKEN in the environment of the run "
                "(a secret on Kubernetes), or remove registry.hub."
            )
        return cls(HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token), config)

    def push(self, part: str, repo: str, directory: Path, card: str, message: str) -> Pushed:
        """Make the branch hold exactly the directory and the card."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        wanted = {
            path.relative_to(directory).as_posix(): path
            for path in sorted(directory.rglob("*"))
            if path.is_file() and path.name not in LEFT_OUT and path.suffix != LEFT_OUT_SUFFIX
        }
        with _explained(repo):
            self.api.create_repo(repo, private=self.config.private, exist_ok=True)
            if self.config.branch != "main":
                self.api.create_branch(repo, branch=self.config.branch, exist_ok=True)
            there = self._there(repo)
            changed = [name for name, path in wanted.items() if name not in there or not _same(path, there[name])]
            operations: list[Any] = [CommitOperationAdd(name, wanted[name]) for name in changed]
            if CARD not in there or there[CARD].blob_id != _git_blob(card.encode()):
                operations.append(CommitOperationAdd(CARD, card.encode()))
            sent_bytes = sum(operation.upload_info.size for operation in operations)
            sent_files = len(operations)
            gone = there.keys() - wanted.keys() - {CARD} - NOT_OURS
            operations += [CommitOperationDelete(name) for name in sorted(gone)]
            if not operations:
                return Pushed(part, repo, self.api.model_info(repo, revision=self.config.branch).sha, 0, 0)
            made = self.api.create_commit(repo, operations, commit_message=message, revision=self.config.branch)
        return Pushed(part, repo, made.oid, sent_files, sent_bytes)

    def _there(self, repo: str) -> Mapping[str, Any]:
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(repo, recursive=True, revision=self.config.branch)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(path: Path, entry: Any) -> bool:
    """Whether a file of the Hub has these bytes; large files are named by SHA-256 there, small ones as git does."""
    if entry.size != path.stat().st_size:
        return False
    return entry.lfs.sha256 == file_sha256(path) if entry.lfs else entry.blob_id == _git_blob(path.read_bytes())


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    import httpx
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled:
        raise HubRefused(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it for this run.") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        remedy = {
            401: "HF_TOKEN is not valid. Make a new one with write access.",
            403: "HF_TOKEN may not write there. Give it write access, or correct registry.hub.repo.",
            404: "There is no such owner or branch. Correct registry.hub.",
        }.get(error.response.status_code if error.response is not None else 0, "Run again to continue.")
        raise HubRefused(f"{repo}: the Hub answered {status}. {remedy}") from None
    except (httpx.TransportError, RuntimeError) as error:
        raise HubRefused(
            f"{repo}: the Hub cannot be reached or broke off ({type(error).__name__}). Check the network and "
            "HF_ENDPOINT; run again to continue."
        ) from None
