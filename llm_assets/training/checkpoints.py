"""Checkpoints a killed run continues from: each is valid only once a manifest of its files' hashes lies beside them.

The manifest is written last and by rename, so that a checkpoint cut short by a kill has none and is skipped. It also
says which run the checkpoint belongs to. Hashing costs a second per gigabyte; adapters are small.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from llm_assets.core import LLMAssetsError
from llm_assets.training.identity import file_sha256

COMPLETE = "complete.json"
RUN = "run.json"


class CheckpointMismatch(LLMAssetsError):
    """A work directory holds the checkpoints of another run."""


class CheckpointNotWritten(LLMAssetsError):
    """A checkpoint could not be written, most often because the disk is full."""


def claim(work: Path, run: Mapping[str, str]) -> None:
    """Mark a work directory as belonging to a run, told by digests of its inputs and settings.

    Raises:
        CheckpointMismatch: it belongs to another; names what differs.
    """
    work.mkdir(parents=True, exist_ok=True)
    marker = work / RUN
    if not marker.exists():
        write_whole(marker, dict(run))
        return
    _refuse_other(work, json.loads(marker.read_text()), run)


def seal(checkpoint: Path, run: Mapping[str, str]) -> None:
    """Declare a checkpoint complete, and whose it is.

    Args:
        checkpoint: Directory whose files are all written.
        run: Digests of the run's inputs and settings, and the position in its data.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    hashes = {path.relative_to(checkpoint).as_posix(): file_sha256(path) for path in files}
    write_whole(checkpoint / COMPLETE, {"run": dict(run), "files": hashes})


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be continued from; None if it was sealed and still has the bytes it was sealed with."""
    if not (checkpoint / COMPLETE).exists():
        return "was not finished"
    for name, sha in json.loads((checkpoint / COMPLETE).read_text())["files"].items():
        if not (checkpoint / name).exists():
            return f"has lost {name}"
        if file_sha256(checkpoint / name) != sha:
            return f"has other bytes in {name} than were written"
    return None


def latest_complete(work: Path, run: Mapping[str, str], log: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint in `work`; newer damaged ones are deleted, and said.

    Args:
        work: The run's directory.
        run: Digests of the run's inputs and settings.
        log: Receives a line for each damaged checkpoint.

    Raises:
        CheckpointMismatch: the checkpoint was moved here from another run; names what differs.
    """
    for checkpoint in sorted(work.glob("checkpoint-*"), key=step_of, reverse=True):
        if problem := damage(checkpoint):
            log(f"{checkpoint.name} {problem}: falling back to the one before")
            shutil.rmtree(checkpoint)
            continue
        _refuse_other(checkpoint, json.loads((checkpoint / COMPLETE).read_text())["run"], run)
        return checkpoint
    return None


@contextmanager
def explained(checkpoint: Path) -> Iterator[None]:
    """Run the block that writes a checkpoint; if it cannot, leave the ones before as they are and say what to do.

    Raises:
        CheckpointNotWritten: the system refused a write; the unfinished checkpoint is removed.
        torch.OutOfMemoryError: gathering what is written did not fit; as it was raised.
        torch.distributed.DistError: another process was lost meanwhile; as it was raised.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, torch.distributed.DistError):  # RuntimeErrors too, and no disk's fault
        raise
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        shutil.rmtree(checkpoint, ignore_errors=True)
        kept = max(checkpoint.parent.glob("checkpoint-*"), key=step_of, default=None)
        raise CheckpointNotWritten(
            f"{checkpoint} could not be written: {str(error).splitlines()[0]}. Free space or point LLM_ASSETS_HOME at "
            f"a larger disk, then run again: it continues after step {step_of(kept) if kept else 0}."
        ) from error


def step_of(checkpoint: Path) -> int:
    """Optimiser step a checkpoint was taken after."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to a file that is never seen half-written."""
    partial = path.with_suffix(f".{uuid4().hex}.partial")  # several processes may write the same at once
    partial.write_text(json.dumps(content, indent=1, sort_keys=True))
    partial.replace(path)


def _refuse_other(place: Path, begun: Mapping[str, str], run: Mapping[str, str]) -> None:
    differing = [f"{name} {begun.get(name)}, now {run.get(name)}" for name in run if begun.get(name) != run.get(name)]
    if differing:
        raise CheckpointMismatch(
            f"{place} holds checkpoints of another run: {'; '.join(differing)}. "
            "Continuing would mix two runs: delete the directory or give another one."
        )
