"""Where rows come from: files named by path or glob, and refused before a row is read if something is wrong.

Hub datasets are fetched once, at a pinned commit, and then read like local files. Refusing early costs one look at
every file's columns.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.formats import FormatConfig

SUFFIXES = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
}
COMPRESSED = (".gz", ".zst")

COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceMissing(LLMAssetsError):
    """A source's path or glob names no file."""


class SourceEmpty(LLMAssetsError):
    """A source's files hold no row."""


class SourceUnreadable(LLMAssetsError):
    """A file is malformed, or its format cannot be told."""


class SourceNameTaken(LLMAssetsError):
    """Two sources go by the same name."""


class HubDatasetUnavailable(LLMAssetsError):
    """A Hub dataset cannot be fetched: no network, no access, or no such revision."""


class SourceConfig(Config):
    """One source of rows: local files, or the files of a Hugging Face Hub dataset at a pinned revision."""

    path: str = Field(
        description="File, directory or glob (`**` descends); relative to the working directory or the `hub` set."
    )
    hub: str | None = Field(
        default=None, description="Dataset on the Hugging Face Hub, such as gretelai/synthetic_text_to_sql."
    )
    revision: str | None = Field(
        default=None, description="Commit of the Hub dataset: 40 hexadecimal digits, no branch."
    )
    first_rows: int | None = Field(
        default=None, ge=1, description="Take at most this many rows, in file order; all by default."
    )
    row_format: FormatConfig | None = Field(
        default=None, description="How these rows read as conversations, where that differs from the lineage's format."
    )
    format: Literal["auto", "parquet", "json", "jsonl", "csv"] = Field(
        default="auto", description="How the files are read; auto goes by the suffix, also below .gz and .zst."
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What the `source` column says; the file or directory name when not given.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.hub is not None and not COMMIT.fullmatch(self.revision or ""):
            raise ValueError(
                f"revision of {self.hub} is {self.revision!r}, which may point elsewhere tomorrow. Give the 40-digit "
                f"commit from https://huggingface.co/datasets/{self.hub}/commits/main."
            )
        if self.hub is None and self.revision is not None:
            raise ValueError(f"revision {self.revision!r} has no say over local files; remove it or name a hub dataset")
        return self

    @property
    def label(self) -> str:
        """Name of the source in the `source` column; never an absolute path, so that moved files keep their bytes."""
        path = Path(self.path)
        return self.name or (path.parent.name if glob.has_magic(path.name) else path.name.split(".")[0]) or "rows"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source and how to read it: `parquet`, `json` (array or lines) or `csv`."""

    source: str
    path: Path
    format: str
    row_format: FormatConfig | None = None


def find_files(sources: Sequence[SourceConfig]) -> list[SourceFile]:
    """Resolve every source to its files, in the order of the sources and then of the paths.

    Raises:
        SourceMissing: a path or glob names no file.
        SourceUnreadable: `format` is auto and a suffix is none of the known ones.
        SourceNameTaken: two sources share a name.
        HubDatasetUnavailable: a Hub dataset cannot be fetched.
    """
    if not sources:
        raise SourceMissing("No source is configured. Give raw_dataset at least one entry under sources.")
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1:
            raise SourceNameTaken(f"{labels.count(label)} sources are named '{label}'. Give each a name of its own.")
    return [file for source in sources for file in _files_of(source)]


def _files_of(source: SourceConfig) -> list[SourceFile]:
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
    return [SourceFile(source.label, p, _format_of(p, source), source.row_format) for p in sorted(found)]


def _hub_snapshot(source: SourceConfig) -> Path:
    """Local directory with the matching files of a Hub dataset, fetched into the Hub's own cache when not there yet."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(source.hub), repo_type="dataset", revision=source.revision, allow_patterns=[source.path]
            )
        )
    except Exception as error:  # the client's many network and access errors share no narrower base
        raise HubDatasetUnavailable(
            f"Source '{source.label}': {source.hub} at {source.revision} could not be fetched: {error}. "
            "Check the network, the names, and HF_TOKEN for a gated dataset."
        ) from error


def _format_of(path: Path, source: SourceConfig) -> str:
    found = _format_by_suffix(path) if source.format == "auto" else source.format
    if found is None:
        raise SourceUnreadable(
            f"Source '{source.label}': the suffix of {path} says nothing. Set format to parquet, json, jsonl or csv."
        )
    return "json" if found == "jsonl" else found


def _format_by_suffix(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSED]
    return SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
