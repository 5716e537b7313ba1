"""Put directories into a logged model without a second copy: hard links on one file system, one upload otherwise.

MLflow's own `log_model` copies a model to the temporary directory and from there to the store. Linked files share their
bytes with the artifact store, where they are read-only; deleting either name leaves the other whole.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse


def place(client: Any, model_id: str, location: str, source: Path, path: str | None) -> int:
    """Put `source`'s files at `path` below a logged model's artifacts.

    Args:
        client: MLflow client.
        model_id: Logged model.
        location: Its artifact location, a URI or a path.
        source: Directory.
        path: Target below the artifacts; None for their root.

    Returns:
        Bytes written anew: 0 where every file could be linked.
    """
    root = local_directory(location)
    if root is None:
        client.log_model_artifacts(model_id, str(source), path)
        return sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    return _link_tree(source, root / path if path else root)


def local_directory(location: str) -> Path | None:
    """The directory behind an artifact location; None where it is not on this machine's file systems."""
    parts = urlparse(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if not parts.scheme else None


def _link_tree(source: Path, target: Path) -> int:
    copied_bytes = 0
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        name = target / file.relative_to(source)
        name.parent.mkdir(parents=True, exist_ok=True)
        name.unlink(missing_ok=True)
        try:
            os.link(file, name)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            shutil.copyfile(file, name)
            copied_bytes += file.stat().st_size
    return copied_bytes
