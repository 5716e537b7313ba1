"""The parent's end of the SQL sandbox: a child that is replaced when it dies, hangs or runs out of memory.

Model-written text is hostile input. One persistent child costs 0.15 s to start and 2-3 ms per query; a fresh process or
connection per query costs 10 to 60 times that.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError


class SandboxUnavailable(LLMAssetsError):
    """The SQL child process does not start on this machine."""


class SqlSandboxConfig(Config):
    """Limits of the child process that executes model-written SQL."""

    soft_limit_seconds: float = Field(default=2.0, gt=0, description="A query is interrupted after this time.")
    hard_limit_seconds: float = Field(default=4.0, gt=0, description="The child is killed after this time.")
    memory_bytes: int = Field(default=2 * 2**30, ge=2**29, description="Address space of the child.")
    data_sets: int = Field(
        default=3,
        ge=1,
        le=10,
        description="Each query runs on the row's own tables and on this many less one, redrawn.",
    )
    max_result_rows: int = Field(default=10_000, ge=1, description="A query returning more rows counts as failed.")

    @model_validator(mode="after")
    def _kill_after_interrupt(self) -> Self:
        if self.hard_limit_seconds <= self.soft_limit_seconds:
            raise ValueError(
                f"hard_limit_seconds {self.hard_limit_seconds:g} must exceed soft_limit_seconds "
                f"{self.soft_limit_seconds:g}, or no query is ever interrupted cleanly. Raise it."
            )
        return self


@dataclass(frozen=True)
class SqlResult:
    """What one query returned.

    Attributes:
        results: Rows per data set, each row a list of JSON cells; empty when the query failed.
        ordered: The query ends in ORDER BY, so that the order of its rows is part of the answer.
        error: `refused: …`, `failed: …`, `timeout: …`, `memory: …` or `too_large: …`; None when it ran.
    """

    results: Sequence[Sequence[Sequence[Any]]] = ()
    ordered: bool = False
    error: str | None = None


class SqlSandbox:
    """Context manager around one child process; `open` a context, then `query` it any number of times."""

    def __init__(self, config: SqlSandboxConfig) -> None:
        self.config = config
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._context = ""
        self._pending = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def open(self, context: str) -> SqlResult:
        """Create a row's tables (`CREATE TABLE …; INSERT …`) in fresh in-memory databases."""
        self._context = context
        return self._ask({"open": {"context": context, "data_sets": self.config.data_sets}})

    def query(self, sql: str) -> SqlResult:
        """Run one SELECT on every data set of the open context."""
        if self._child is None:
            opened = self.open(self._context)
            if opened.error:
                return opened
        return self._ask({"query": sql})

    def _ask(self, request: dict[str, Any]) -> SqlResult:
        child = self._child or self._start()
        line = self._exchange(child, json.dumps(request).encode() + b"\n")
        if line is None:
            self._stop()
            return SqlResult(error=f"timeout: killed after {self.config.hard_limit_seconds:g} s")
        if not line:
            self._stop()
            return SqlResult(error="memory: the process died")
        reply = json.loads(line)
        if str(reply["error"]).startswith("memory"):
            self._stop()  # a child that ran out of memory fails the next harmless queries too
        return SqlResult(reply.get("results", ()), reply.get("ordered", False), reply["error"])

    def _exchange(self, child: subprocess.Popen[bytes], request: bytes) -> bytes | None:
        """Send one request; return its answering line, empty when the child died, None when it is too late."""
        assert child.stdin is not None
        try:
            child.stdin.write(request)
            child.stdin.flush()
        except BrokenPipeError:
            return b""
        return self._line(child, self.config.hard_limit_seconds)

    def _line(self, child: subprocess.Popen[bytes], limit_seconds: float) -> bytes | None:
        assert child.stdout is not None
        deadline = time.monotonic() + limit_seconds
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                return None
            chunk = os.read(child.stdout.fileno(), 1 << 20)
            if not chunk:
                return b""
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {**self.config.model_dump(), "max_result_bytes": 2**24}
        program = Path(__file__).with_name("sql_child.py")
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(program), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            env={"PATH": os.environ.get("PATH", "")},
        )
        self.starts += 1
        self._pending = b""
        if not self._line(self._child, limit_seconds=60):  # importing DuckDB from a cold disk
            self._stop()
            raise SandboxUnavailable(
                f"{program.name} did not start with memory_bytes={self.config.memory_bytes}. "
                "Raise evaluation.sql.memory_bytes, and check that this Python can `import duckdb`."
            )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
            self._pending = b""
