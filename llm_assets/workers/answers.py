"""The answers of one task on disk: which rows are still to do, and commits that a kill cannot tear.

<output>/part-00000.parquet, part-00001.parquet, ...   one per micro-batch, written beside and renamed
<output>/engine.json                                   what the engine measured so far, renewed with each commit
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("error", pa.string()),
        ("latency_seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Request:
    """One row to answer; the ids are kept as bytes, because a Python list of them takes nine times the memory."""

    row_id: str
    big_endian_ids: bytes

    def token_ids(self) -> list[int]:
        """The prompt as the engine takes it."""
        return np.frombuffer(self.big_endian_ids, ">i4").tolist()

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.big_endian_ids) // 4


@dataclass(frozen=True)
class Answer:
    """One answered row; `finish_reason` is stop, length or error, and `error` says why in the last case."""

    row_id: str
    completion: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    error: str | None
    latency_seconds: float


class TaskLedger:
    """Requests and committed answers of one task."""

    def __init__(self, output: Path, requests: Path) -> None:
        self._output = output
        self._requests = requests
        output.mkdir(parents=True, exist_ok=True)
        for torn in output.glob(".*.partial"):
            torn.unlink()
        self.requested = pq.read_metadata(requests).num_rows
        self._parts = sorted(output.glob("part-*.parquet"))
        report = output / "engine.json"
        self.report: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}

    def unanswered(self) -> list[Request]:
        """Rows without a committed answer, sorted by prompt so that shared prefixes are computed once."""
        done = {row_id for part in self._parts for row_id in pq.read_table(part, columns=["row_id"])[0].to_pylist()}
        table = pq.read_table(self._requests)
        rows = zip(table["row_id"].to_pylist(), _prompt_bytes(table["prompt_token_ids"]), strict=True)
        waiting = [Request(row_id, ids) for row_id, ids in rows if row_id not in done]
        return sorted(waiting, key=lambda request: request.big_endian_ids)

    def describe_engine(self, engine: dict[str, Any]) -> None:
        """Set what the report says about the engine; sums of an interrupted run are kept."""
        sums = {"rows": 0, "prompt_tokens": 0, "completion_tokens": 0, "cached_prompt_tokens": 0, "seconds": 0.0}
        idle = {"engine_start": 0, "import_seconds": 0.0, "load_seconds": 0.0}
        self.report = {**idle, **sums, **self.report, **engine}

    def commit(self, answers: Sequence[Answer], seconds: float, cached_prompt_tokens: int = 0) -> None:
        """Make answers permanent, then renew the report; a kill between the two costs a few counted tokens."""
        if answers:
            part = self._output / f"part-{self._next_part():05d}.parquet"
            table = pa.Table.from_pylist([asdict(answer) for answer in answers], schema=SCHEMA)
            partial = self._output / f".{part.name}.partial"
            pq.write_table(table, partial)
            _replace(partial, part)
            self._parts.append(part)
        self.report["rows"] += len(answers)
        self.report["prompt_tokens"] += sum(answer.prompt_tokens for answer in answers)
        self.report["completion_tokens"] += sum(answer.completion_tokens for answer in answers)
        self.report["cached_prompt_tokens"] += cached_prompt_tokens
        self.report["seconds"] += seconds
        self.report["tokens_per_second"] = self.report["completion_tokens"] / max(self.report["seconds"], 1e-9)
        partial = self._output / ".engine.json.partial"
        partial.write_text(json.dumps(self.report, indent=1))
        _replace(partial, self._output / "engine.json")

    def _next_part(self) -> int:
        return 1 + int(self._parts[-1].stem.removeprefix("part-")) if self._parts else 0


def _prompt_bytes(column: pa.ChunkedArray) -> list[bytes]:
    """Each prompt as big-endian int32 bytes, whose order is the order of the token ids."""
    prompts = []
    for chunk in column.chunks:
        flat = chunk.flatten().to_numpy(zero_copy_only=False).astype(">i4").tobytes()
        ends = np.cumsum(chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)) * 4
        starts = [0, *ends[:-1]]
        prompts += [flat[start:end] for start, end in zip(starts, ends, strict=True)]
    return prompts


def _replace(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
