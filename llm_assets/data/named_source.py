"""Rows named in one word, as a call or a command line does: a file, a glob, a URL or a table."""

import re
from pathlib import Path
from typing import Any

from llm_assets.data.source_files import COMPRESSED, SUFFIXES

IN_DATABASE = "::"
THREE_PARTS = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")


def source_named(text: str) -> dict[str, Any]:
    """The `sources` entry that a word stands for.

    `rows/*.parquet` is files, `prod.sales.orders` a table of a catalog, `warehouse.duckdb::sales.orders` a table of a
    database. A name of three parts is a file only where it exists, or ends as files do.
    """
    database, separator, table = text.rpartition(IN_DATABASE)
    if separator:
        return {"database": database, "table": table}
    looks_like_file = Path(text).suffix in (*SUFFIXES, *COMPRESSED) or Path(text).exists()
    if THREE_PARTS.fullmatch(text) and not looks_like_file:
        return {"table": text}
    return {"path": text}
