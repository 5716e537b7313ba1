"""Big outputs are immutable directories addressed by their content; the event log is the only pointer to "current".

A directory is built in `staging` on the store's own file system and appears under its final name by one rename, so a
crash leaves either nothing or everything. The cost is one pass of SHA-256 over every byte on publish and another on the
first read in each process (1-2 GB/s per core).

    <root>/<model>/<asset>[/<partition>]/<fingerprint>/manifest.json + files      published, read-only
    <root>/.work/<model>/<asset>[/<partition>]/<inputs digest>/                   unfinished work that survives a crash
    <root>/.staging/<random>/                                                     scratch, swept once its owner is gone
"""

import errno
import fcntl
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.core import LLMAssetsError

MANIFEST = "manifest.json"
FINGERPRINT_KEY = "fingerprint"
_verified_in_this_process: set[Path] = set()


class StoreUnavailable(LLMAssetsError):
    """The store cannot be written: missing rights, read-only or full file system."""


class ArtifactMissing(LLMAssetsError):
    """An asset has no materialization, or its directory is gone from the store."""


class ArtifactCorrupted(LLMAssetsError):
    """A published file no longer has the bytes its manifest promises."""


@dataclass(frozen=True)
class Artifact:
    """A published directory: where it is and the SHA-256 over its file names and bytes."""

    path: Path
    fingerprint: str


class ArtifactStore(dg.ConfigurableResource):
    """Immutable artifact directories under one root, published atomically and verified on first read."""

    root: str

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield an empty directory on the store's file system; whatever is left in it on exit is removed.

        Raises:
            StoreUnavailable: the store is read-only, full, or not writable by this user.
        """
        with self._explained_os_errors():
            scratch = Path(self.root).absolute() / ".staging"
            scratch.mkdir(parents=True, exist_ok=True)
            _sweep_abandoned(scratch)
            owned = Path(tempfile.mkdtemp(dir=scratch))
            with _locked(owned.with_suffix(".lock")):
                try:
                    (owned / "artifact").mkdir()
                    yield owned / "artifact"
                finally:
                    shutil.rmtree(owned, ignore_errors=True)

    @contextmanager
    def workspace(self, key: dg.AssetKey, inputs_digest: str, partition: str | None = None) -> Iterator[Path]:
        """Yield a directory that survives a crash and is handed out again for the same inputs.

        Checkpoints, a study's storage and finished micro-batches live here. It is removed on a clean exit; work
        begun on other inputs of the same asset is discarded on entry. One process at a time holds it.

        Raises:
            StoreUnavailable: as `staging`, or another live process is working on the same asset.
        """
        home = self._directory(key, partition, base=Path(self.root).absolute() / ".work")
        with self._explained_os_errors():
            home.mkdir(parents=True, exist_ok=True)
            with _locked(home / "lock", wait=False):
                for stale in home.iterdir():
                    if stale.name not in (inputs_digest, "lock"):
                        shutil.rmtree(stale, ignore_errors=True)
                die_with_parent()
                work = home / inputs_digest
                work.mkdir(exist_ok=True)
                yield work
                shutil.rmtree(work)

    def publish(self, key: dg.AssetKey, staged: Path, partition: str | None = None) -> Artifact:
        """Seal a staged directory under its content's fingerprint; an identical earlier publication is reused.

        Raises:
            StoreUnavailable: the store is read-only or full.
            LLMAssetsError: the staged directory holds no file.
        """
        with self._explained_os_errors():
            manifest = build_manifest(staged)
            target = self._directory(key, partition) / manifest[FINGERPRINT_KEY]
            if not (target / MANIFEST).exists():
                (staged / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
                for name in manifest["files"]:
                    (staged / name).chmod(0o444)
                target.parent.mkdir(parents=True, exist_ok=True)
                _move(staged, target)
            _verified_in_this_process.add(target)
            return Artifact(path=target, fingerprint=manifest[FINGERPRINT_KEY])

    def open(self, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None = None) -> Artifact:
        """Return the current artifact of an asset, its bytes verified once per process.

        Raises:
            ArtifactMissing: never materialized, or deleted from the store.
            ArtifactCorrupted: names the first file whose bytes changed.
        """
        where = dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
        records = instance.fetch_materializations(where, limit=1).records
        name = key.to_user_string() + (f" [{partition}]" if partition else "")
        if not records:
            raise ArtifactMissing(f"{name} has no materialization to read. Materialize it first.")
        materialization = records[0].asset_materialization
        fingerprint = materialization.metadata[FINGERPRINT_KEY].value if materialization else ""
        return self.at(key, str(fingerprint), partition)

    def at(self, key: dg.AssetKey, fingerprint: str, partition: str | None = None) -> Artifact:
        """Return one known version of an artifact, current or not; raises as `open`."""
        path = self._directory(key, partition) / fingerprint
        if not (path / MANIFEST).exists():
            raise ArtifactMissing(
                f"{key.to_user_string()} {fingerprint} is not in the store at {self.root}. "
                "Materialize the asset again, or point LLM_ASSETS_HOME at the store that holds it."
            )
        if path not in _verified_in_this_process:
            verify(path)
            _verified_in_this_process.add(path)
        return Artifact(path=path, fingerprint=fingerprint)

    def prune(self, key: dg.AssetKey, keep: int, protected: Sequence[str], partition: str | None = None) -> list[str]:
        """Delete all but the newest `keep` versions and the protected fingerprints; return what was deleted.

        Newest is by publication time. Pass as protected what a registry or the event log still points to.
        """
        versions = self.versions(key, partition)
        doomed = [path for path in versions[keep:] if path.name not in protected]
        for path in doomed:
            (path / MANIFEST).unlink()  # first: a half-deleted version must not look published
            shutil.rmtree(path)
        return [path.name for path in doomed]

    def versions(self, key: dg.AssetKey, partition: str | None = None) -> list[Path]:
        """Published directories of an asset, newest publication first."""
        found = [path.parent for path in self._directory(key, partition).glob(f"*/{MANIFEST}")]
        return sorted(found, key=lambda path: path.stat().st_ctime_ns, reverse=True)

    def partitions(self, key: dg.AssetKey) -> list[str | None]:
        """Partition keys that hold a published version; `[None]` for an unpartitioned asset."""
        if self.versions(key):
            return [None]
        names = {path.parent.parent.name for path in self._directory(key, None).glob(f"*/*/{MANIFEST}")}
        return [name.replace("%2F", "/") for name in sorted(names)]

    def _directory(self, key: dg.AssetKey, partition: str | None, base: Path | None = None) -> Path:
        directory = (base or Path(self.root).absolute()).joinpath(*key.path)
        return directory / partition.replace("/", "%2F") if partition else directory

    @contextmanager
    def _explained_os_errors(self) -> Iterator[None]:
        remedies = {
            errno.ENOSPC: "The disk is full. Free space or point LLM_ASSETS_HOME at a larger disk, then run again.",
            errno.EDQUOT: "The disk quota is used up. Free space or point LLM_ASSETS_HOME elsewhere, then run again.",
            errno.EROFS: "The file system is read-only. Point LLM_ASSETS_HOME at a writable one, then run again.",
            errno.EACCES: "This user may not write there. Fix its rights or point LLM_ASSETS_HOME elsewhere.",
            errno.EPERM: "This user may not write there. Fix its rights or point LLM_ASSETS_HOME elsewhere.",
        }
        try:
            yield
        except OSError as error:
            if error.errno not in remedies:
                raise
            raise StoreUnavailable(f"Artifact store {self.root}: {error}. {remedies[error.errno]}") from error


def digest(inputs: Mapping[str, Any]) -> str:
    """Short SHA-256 of a JSON-serialisable description of inputs (fingerprints, config dumps, versions)."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def build_manifest(directory: Path) -> dict[str, Any]:
    """Hash every file of a directory: `{"fingerprint": hex, "bytes": int, "files": {name: {"sha256", "bytes"}}}`."""
    names = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    files = {
        name: {"sha256": _sha256(directory / name), "bytes": (directory / name).stat().st_size}
        for name in names
        if name != MANIFEST
    }
    if not files:
        raise LLMAssetsError(f"Nothing to publish: {directory.name} holds no file.")
    listing = "".join(f"{name}\0{entry['sha256']}\n" for name, entry in files.items())
    return {
        FINGERPRINT_KEY: hashlib.sha256(listing.encode()).hexdigest()[:24],
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": files,
    }


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest a published directory was sealed with; see `build_manifest`."""
    return json.loads((directory / MANIFEST).read_text())


def verify(directory: Path) -> None:
    """Raise `ArtifactCorrupted` naming the first file whose bytes differ from the manifest."""
    for name, entry in read_manifest(directory)["files"].items():
        path = directory / name
        if not path.exists() or _sha256(path) != entry["sha256"]:
            raise ArtifactCorrupted(
                f"{path} does not have the bytes it was published with (SHA-256 {entry['sha256'][:12]}… expected). "
                f"Delete {directory} and materialize the asset again."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(staged: Path, target: Path) -> None:
    """Give a sealed directory its final name, unless a process that made the same bytes was faster."""
    try:
        staged.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not (target / MANIFEST).exists():  # what is left of a version whose deletion was interrupted
            shutil.rmtree(target)
            staged.replace(target)


@functools.cache
def die_with_parent() -> None:
    """End this step process when the run that started it is killed, so that the next run finds the workspace free.

    The kernel's parent-death signal would not do: a step's parent is the fork server, which outlives the run while it
    has steps.
    """
    if run := multiprocessing.parent_process():
        threading.Thread(target=_die_after, args=(run,), daemon=True).start()


def _die_after(run: multiprocessing.process.BaseProcess) -> None:
    run.join()
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock file; the kernel drops it when the process dies, however it dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise StoreUnavailable(
                f"Another process is working on {path.parent}. Wait for its run to end, or cancel it in the Dagster UI."
            ) from None
        try:
            yield
        finally:
            if wait:
                path.unlink(missing_ok=True)


def _sweep_abandoned(scratch: Path) -> None:
    """Remove staging directories whose owner died, told by a lock that can be taken."""
    for lock in scratch.glob("*.lock"):
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
