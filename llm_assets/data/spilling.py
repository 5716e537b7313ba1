"""DuckDB with bounded memory: what sorting and grouping cannot hold goes to a scratch directory that is removed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb


@contextmanager
def bounded_connection(beside: Path, memory_limit: str = "1GB") -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield an in-memory database that spills beside the given file; Python variables are no tables in it."""
    with (
        TemporaryDirectory(dir=beside.parent, prefix=".spill-") as spill,
        duckdb.connect(
            config={"temp_directory": spill, "memory_limit": memory_limit, "python_enable_replacements": False}
        ) as connection,
    ):
        yield connection
