"""The files behind a source: local paths and globs, URLs through fsspec, and snapshots of Hub datasets.

s3:// and gs:// are read with the clients that come with pyarrow, so they need no further package; every other scheme
needs the package fsspec names.
"""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Any

from llm_assets.data.catalogs import from_catalog
from llm_assets.data.formats import FormatConfig
from llm_assets.data.sources import (
    URL,
    HubDatasetUnavailable,
    SourceConfig,
    SourceMissing,
    SourceNameTaken,
    SourceUnreadable,
    redacted,
)

SUFFIXES = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
ARROW_SCHEMES = ("s3", "gs", "gcs")


@dataclass(frozen=True)
class SourceFile:
    """One file of a source and how to read it.

    Attributes:
        source: Label of its source.
        path: Local path, or path within `filesystem`.
        format: `parquet`, `json` (array or lines) or `csv`.
        name: Path below the source's own, as `source_file` says; it stays when the source moves.
        filesystem: fsspec file system of a URL; None for a local file.
    """

    source: str
    path: Path | PurePosixPath
    format: str
    row_format: FormatConfig | None = None
    name: str = ""
    filesystem: Any = None

    def open(self) -> IO[bytes]:
        """The file's bytes as stored; the caller closes it."""
        return self.filesystem.open(str(self.path), "rb") if self.filesystem else Path(self.path).open("rb")

    @property
    def compression(self) -> str | None:
        """gzip, bz2 or zstd, by the suffix."""
        return COMPRESSED.get(self.path.suffix.lower())

    @property
    def state(self) -> dict[str, Any]:
        """What changes when the file does: its size, its modification time and, of a URL, its entity tag."""
        if self.filesystem is None:
            found = Path(self.path).stat()
            return {"bytes": found.st_size, "modified_seconds": found.st_mtime}
        info = self.filesystem.info(str(self.path))
        tags = [str(info[key]) for key in ("ETag", "etag", "md5Hash", "crc32c", "checksum") if info.get(key)]
        return {"bytes": info.get("size"), "modified_seconds": _seconds(self.filesystem, info, self.path), "tags": tags}


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Resolve every source of files, in the order of the sources and then of the paths; databases have none.

    Raises:
        SourceMissing: a path, glob or URL names no file.
        SourceUnreadable: `format` is auto and a suffix is none of the known ones; a URL cannot be reached.
        SourceNameTaken: two sources share a name.
        HubDatasetUnavailable: a Hub dataset cannot be fetched.
        CatalogUnknown: a three-part table is in no known catalog.
    """
    refuse_ambiguous(sources)
    return [file for source in sources for file in files_of(from_catalog(source))]


def refuse_ambiguous(sources: Sequence[SourceConfig]) -> None:
    """Raise `SourceNameTaken` where two sources share a name, `SourceMissing` where there is none."""
    if not sources:
        raise SourceMissing("No source is configured. Give raw_dataset at least one entry under sources.")
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise SourceNameTaken(f"{labels.count(label)} sources are named '{label}'. Give each a name of its own.")


def files_of(source: SourceConfig) -> list[SourceFile]:
    """The files of one source, in the order of their paths; none for a database's. Raises as `find_files`."""
    if source.path is None:
        return []
    if URL.match(source.path):
        return _remote_files(source)
    path = _hub_snapshot(source) / source.path if source.hub else Path(source.path).expanduser()
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file() and _format_by_suffix(p)]
    elif path.is_file():
        found = [path]
    else:
        found = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
    if not found:
        raise SourceMissing(
            f"Source '{source.label}': no file at {source.path} (looked in {Path.cwd()}). "
            "Correct the path or glob, or write the rows there first."
        )
    root = str(path) if path.is_dir() else _fixed_part(str(path))
    return [_file(source, p, root, None) for p in sorted(found)]


def _remote_files(source: SourceConfig) -> list[SourceFile]:
    url = str(source.path)
    shown = redacted(url)
    filesystem, path, found = None, "", []
    try:
        filesystem, path = _filesystem(url)
        found = _remote_paths(filesystem, path)
    except FileNotFoundError:
        pass
    except Exception as error:  # the clients of the many stores share no narrower base
        raise SourceUnreadable(
            f"Source '{source.label}': {shown} cannot be reached: {str(error).replace(url, shown)}. Check the URL, the "
            "network and the credentials in the environment."
        ) from error
    if not found:
        raise SourceMissing(f"Source '{source.label}': no file at {shown}. Correct the URL, or write the rows there.")
    root = _fixed_part(path) if glob.has_magic(path) or path in found else path.rstrip("/")
    return [_file(source, PurePosixPath(p), root, filesystem) for p in sorted(map(str, found))]


def _remote_paths(filesystem: Any, path: str) -> list[str]:
    if glob.has_magic(path):
        if fixed := _fixed_part(path):
            filesystem.info(fixed)  # fails where the store cannot be reached, which a glob takes for no match
        return [p for p in filesystem.glob(path) if filesystem.isfile(p)]
    if filesystem.info(path)["type"] == "directory":
        listed = filesystem.ls(path, detail=False)
        return [p for p in listed if _format_by_suffix(PurePosixPath(p)) and filesystem.isfile(p)]
    return [path]


def _filesystem(url: str) -> tuple[Any, str]:
    """File system of a URL and the path in it."""
    if url.split("://", maxsplit=1)[0] in ARROW_SCHEMES:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import FileSystem

        location, _, options = url.partition("?")
        fixed = _fixed_part(location)  # pyarrow parses no glob
        found, parsed = FileSystem.from_uri(fixed + (f"?{options}" if options else ""))
        return ArrowFSWrapper(found), parsed.rstrip("/") + location[len(fixed) :]
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _file(source: SourceConfig, path: Path | PurePosixPath, root: str, filesystem: Any) -> SourceFile:
    found = _format_by_suffix(path) if source.format == "auto" else source.format.replace("jsonl", "json")
    if found is None:
        raise SourceUnreadable(
            f"Source '{source.label}': the suffix of {path} says nothing. Set format to parquet, json, jsonl or csv."
        )
    below = root if path.is_relative_to(root) else str(path.parent)
    name = path.relative_to(below).as_posix()
    return SourceFile(source.label, path, found, source.row_format, name, filesystem)


def _fixed_part(pattern: str) -> str:
    """The directories of a path before its first wildcard; without one, all but its last part."""
    directories = pattern.split("/")[:-1]
    wild = next((n for n, part in enumerate(directories) if glob.has_magic(part)), len(directories))
    return "/".join(directories[:wild])


def _hub_snapshot(source: SourceConfig) -> Path:
    """Local directory with the matching files of a Hub dataset, fetched into the Hub's own cache when not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(source.hub), repo_type="dataset", revision=source.revision, allow_patterns=[str(source.path)]
            )
        )
    except Exception as error:  # the client's many network and access errors share no narrower base
        raise HubDatasetUnavailable(
            f"Source '{source.label}': {source.hub} at {source.revision} could not be fetched: {error}. "
            "Check the network, the names, and HF_TOKEN for a gated dataset."
        ) from error


def _format_by_suffix(path: Path | PurePosixPath) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def _seconds(filesystem: Any, info: dict[str, Any], path: PurePosixPath | Path) -> float:
    """Modification time since the epoch; 0 where the store tells none."""
    try:
        changed = info.get("mtime") or info.get("LastModified") or filesystem.modified(str(path))
    except NotImplementedError:
        return 0.0
    return changed.timestamp() if isinstance(changed, datetime) else float(changed)
