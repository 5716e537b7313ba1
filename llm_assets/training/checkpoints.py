"""Checkpoints a killed run continues from: each is valid only once a manifest of its files' hashes lies beside them.

The manifest is written last and by rename, so that a checkpoint cut short by a kill has none and is skipped. Hashing
costs a second per gigabyte; adapters are small.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from llm_assets.core import LLMAssetsError
from llm_assets.training.identity import file_sha256

COMPLETE = "complete.json"
RUN = "run.json"


class CheckpointMismatch(LLMAssetsError):
    """A work directory holds the checkpoints of another run."""


def claim(work: Path, run: Mapping[str, str]) -> None:
    """Mark a work directory as belonging to a run, told by digests of its inputs and settings.

    Raises:
        CheckpointMismatch: it belongs to another; names what differs.
    """
    work.mkdir(parents=True, exist_ok=True)
    marker = work / RUN
    if not marker.exists():
        _write_whole(marker, dict(run))
        return
    begun = json.loads(marker.read_text())
    differing = [f"{name} {begun.get(name)}, now {run.get(name)}" for name in run if begun.get(name) != run.get(name)]
    if differing:
        raise CheckpointMismatch(
            f"{work} holds checkpoints of another run: {'; '.join(differing)}. "
            "Continuing would mix two runs: delete the directory or give another one."
        )


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint complete."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    _write_whole(checkpoint / COMPLETE, {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in files})


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed and still has the bytes it was sealed with."""
    if not (checkpoint / COMPLETE).exists():
        return False
    files = json.loads((checkpoint / COMPLETE).read_text())
    return all((checkpoint / name).exists() and file_sha256(checkpoint / name) == sha for name, sha in files.items())


def latest_complete(work: Path) -> Path | None:
    """The newest complete checkpoint in `work`; newer incomplete ones are deleted."""
    for checkpoint in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """Optimiser step a checkpoint was taken after."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _write_whole(path: Path, content: Mapping[str, str]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True))
    partial.replace(path)
