"""Which bytes a directory holds, so that work begun on one dataset or base is never continued on another."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def directory_fingerprint(directory: Path) -> str:
    """The fingerprint a published directory was sealed with, or one computed over its file names and bytes."""
    manifest = directory / MANIFEST
    if manifest.exists():
        return json.loads(manifest.read_text())["fingerprint"]
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    listing = "".join(f"{name}\0{file_sha256(directory / name)}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()[:24]


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Short SHA-256 of JSON-serialisable settings, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
