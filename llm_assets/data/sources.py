"""Where rows come from: files, tables, queries and Hub datasets, and how much of each a lineage takes.

A source is refused at load for what is wrong in its words alone. Whether its files and tables exist is asked once,
before the first row is read.
"""

import glob
import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.formats import FormatConfig

COMMIT = re.compile(r"[0-9a-f]{40}")
URL = re.compile(r"^[a-z][a-z0-9+.-]*://")


class SourceMissing(LLMAssetsError):
    """A source's path or glob names no file, or its table does not exist."""


class SourceEmpty(LLMAssetsError):
    """A source's files hold no row."""


class SourceUnreadable(LLMAssetsError):
    """A file or database is damaged as a whole, or its format cannot be told."""


class SourceNameTaken(LLMAssetsError):
    """Two sources go by the same name."""


class HubDatasetUnavailable(LLMAssetsError):
    """A Hub dataset cannot be fetched: no network, no access, or no such revision."""


def redacted(place: str) -> str:
    """A URL without user, password and options, fit for messages and pages; a path as it is."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", place.partition("?")[0]) if URL.match(place) else place


class ThreadsConfig(Config):
    """How rows of single messages that name their parent become threads: one row each, with a list of `messages`."""

    keep: Literal["best", "all"] = Field(
        default="best",
        description="best follows the first-ranked reply of each message; all makes a row of every last reply, and "
        "then split.group_column: tree_id keeps those of one tree together.",
    )
    id_column: str = Field(default="message_id", description="Column with a message's id.")
    parent_column: str = Field(default="parent_id", description="Column with the id it replies to; null for a first.")
    role_column: str = Field(default="role", description="Column with who says it.")
    text_column: str = Field(default="text", description="Column with what is said.")
    rank_column: str = Field(default="rank", description="Column with its rank among replies, best first; may lack.")


class SourceConfig(Config):
    """One source of rows: files here or at a URL, a database's table or query, or files of a Hugging Face dataset."""

    path: str | None = Field(
        default=None,
        description="File, directory or glob (`**` descends), or a URL such as s3://bucket/rows/*.parquet; relative "
        "to the working directory or the `hub` set.",
    )
    table: str | None = Field(
        default=None,
        description="Table of `database`; or catalog.schema.table, where LLM_ASSETS_CATALOGS says what the catalog is.",
    )
    query: str | None = Field(default=None, description="One SELECT, run in `database`.")
    database: str | None = Field(
        default=None,
        description="DuckDB or SQLite file, or a URL that DuckDB attaches: postgres://user@host/name, mysql://….",
    )
    hub: str | None = Field(
        default=None, description="Dataset on the Hugging Face Hub, such as gretelai/synthetic_text_to_sql."
    )
    revision: str | None = Field(
        default=None, description="Commit of the Hub dataset: 40 hexadecimal digits, no branch."
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        description="What the `source` column says; the file, directory or table name when not given.",
    )
    format: Literal["auto", "parquet", "json", "jsonl", "csv"] = Field(
        default="auto", description="How the files are read; auto goes by the suffix, also below .gz, .bz2 and .zst."
    )
    encoding: str = Field(default="utf-8", description="Encoding of text files, such as latin-1 or utf-16.")
    row_format: FormatConfig | None = Field(
        default=None, description="How these rows read as conversations, where that differs from the lineage's format."
    )
    threads: ThreadsConfig | None = Field(
        default=None, description="Join rows of single messages that name their parent (OpenAssistant) into threads."
    )
    rename: dict[str, str] = Field(
        default={}, description="New names of columns, `{theirs: ours}`, so that sources fit one format."
    )
    first_rows: int | None = Field(
        default=None, ge=1, description="Take at most this many rows, in file order; all by default."
    )
    rows: int | None = Field(default=None, ge=1, description="Draw exactly this many rows.")
    weight: float | None = Field(
        default=None,
        gt=0,
        description="Rows relative to the other sources with a weight: 3 and 1 mix three to one, of as many rows as "
        "the scarcest allows.",
    )
    share: float | None = Field(
        default=None, gt=0, le=1, description="Share of all rows that this source's drawn rows make up."
    )
    seed: int = Field(default=0, description="Changes which rows are drawn.")
    max_row_bytes: int = Field(
        default=8 * 2**20, ge=1, description="A larger row is left out and counted; it would never fit a context."
    )
    max_refused_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Stop, instead of counting, when more than this share of rows is damaged.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.hub is not None and not self.path:
            raise ValueError(f"hub {self.hub} needs path: the dataset's files to read, such as data/train-*.parquet")
        origins = [name for name in ("path", "table", "query") if getattr(self, name)]
        if len(origins) != 1:
            raise ValueError(f"a source has {' and '.join(origins) or 'no origin'}; give one of path, table, query")
        if self.path and self.database:
            raise ValueError(f"path '{self.path}' has no say beside database; give table or query, or drop database")
        if self.query and not (self.database and self.name):
            raise ValueError(f"query '{self.query[:60]}' needs a database to run in and a name for its rows")
        if self.table and not self.database and self.table.count(".") != 2:
            raise ValueError(
                f"table '{self.table}' is no catalog.schema.table; name the database, or write three parts"
            )
        return self

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

    @model_validator(mode="after")
    def _known_encoding(self) -> Self:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding '{self.encoding}' is unknown; utf-8, utf-16, latin-1 and cp1252 exist"
            ) from None
        drawn = [name for name in ("rows", "weight", "share") if getattr(self, name) is not None]
        if len(drawn) > 1:
            raise ValueError(f"{' and '.join(drawn)} each say how many rows to draw; give one of them")
        return self

    @property
    def label(self) -> str:
        """Name of the source in the `source` column; never an absolute path, so that moved files keep their bytes."""
        if self.name or not self.path:
            return self.name or str(self.table).split(".")[-1]
        path = Path(redacted(self.path))
        return (path.parent.name if glob.has_magic(path.name) else path.name.split(".")[0]) or "rows"

    @property
    def watched(self) -> tuple[str, ...]:
        """Patterns of what a sensor can watch for new rows: files and URLs, a database that is a file."""
        if self.hub or not (self.path or self.database):
            return ()
        place = str(self.path or self.database)
        return () if self.database and URL.match(place) else (place,)
