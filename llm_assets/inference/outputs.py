"""A partition's answers: what is asked of the engine, what is taken over from last time, and the table of both.

An answer is taken over when the same model, sampled the same way, was asked the same tokens under the same row id. So a
partition whose rows changed a little costs a little, and an unchanged one is byte-identical without starting an engine.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.ingestion import ROWS
from llm_assets.data.messages import RowRefused
from llm_assets.data.rendering import Renderer
from llm_assets.engine.tasks import GenerationConfig, read_answers, read_engine_report, write_requests
from llm_assets.inference.inputs import ASKED

RUN = "run.json"
ANSWERED = pa.schema(
    [
        ("prompt_hash", pa.string()),
        ("completion", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("model_name", pa.string()),
        ("model_version", pa.string()),
        ("variant", pa.string()),
        ("error", pa.string()),
        ("latency_seconds", pa.float64()),
    ]
)


@dataclass(frozen=True)
class ModelInUse:
    """Which weights answer, and how they are sampled; answers are taken over only while all of it is the same.

    Attributes:
        name: Registered name.
        version: Version number.
        model_id: Immutable id of the logged model; a version number can be given again in a new registry.
        variant: `merged` or a quantized variant.
        generation: Sampling settings.
    """

    name: str
    version: str
    model_id: str
    variant: str
    generation: GenerationConfig

    def as_json(self) -> dict[str, Any]:
        """As `run.json` keeps it."""
        return {**asdict(self), "generation": self.generation.model_dump(mode="json")}


@dataclass
class PreparedPartition:
    """A partition between rendering and answering.

    Attributes:
        partition: Its key.
        inputs: `rows.parquet` of the inputs.
        hashes: Prompt hash by row id; rows that cannot be asked have none.
        refusals: Reason by row id, for rows that cannot be asked.
        kept: Answers taken over, by row id.
        kept_seconds: Engine seconds those answers had cost.
        to_answer: Rows the engine is asked.
    """

    partition: str
    inputs: Path
    hashes: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept_seconds: float = 0.0
    to_answer: int = 0


def prepare_partition(
    partition: str, inputs: Path, renderer: Renderer, model: ModelInUse, *, previous: Path | None, requests: Path
) -> PreparedPartition:
    """Render every prompt once, take over what can be, and write requests for the rest.

    Args:
        partition: Key.
        inputs: Published inputs of the partition.
        renderer: Template and tokenizer of the model that will answer.
        model: Weights and sampling.
        previous: Published outputs of an earlier run of the partition, if any.
        requests: File to write; not written when there is nothing to ask.
    """
    prepared = PreparedPartition(partition, inputs / ROWS)
    earlier, earlier_run = _earlier(previous, model)
    row_ids: list[str] = []
    prompts: list[list[int]] = []
    for batch in pq.ParquetFile(prepared.inputs).iter_batches(1024, columns=["row_id", *(f.name for f in ASKED)]):
        for row in batch.to_pylist():
            try:
                token_ids = _token_ids(row, renderer)
            except RowRefused as refusal:
                prepared.refusals[row["row_id"]] = str(refusal)
                continue
            hashed = prompt_hash(token_ids)
            prepared.hashes[row["row_id"]] = hashed
            if (row["row_id"], hashed) in earlier:
                prepared.kept[row["row_id"]] = earlier[row["row_id"], hashed]
            else:
                row_ids.append(row["row_id"])
                prompts.append(token_ids)
    prepared.to_answer = len(row_ids)
    prepared.kept_seconds = _share_of_seconds(prepared.kept, earlier_run)
    if row_ids:
        write_requests(requests, row_ids, prompts)
    return prepared


def finish_partition(prepared: PreparedPartition, model: ModelInUse, answers: Path, out: Path) -> dict[str, Any]:
    """Join answers to rows, in the order of the inputs, and write `rows.parquet` and `run.json` in `out`.

    An input column that has the name of an answer's column is kept as `input_<name>`. A row without an answer is left
    out, for the `complete` check to find.

    Args:
        prepared: From `prepare_partition`.
        model: Weights and sampling.
        answers: Output directory of the task; not read when nothing was asked.
        out: Existing directory.

    Returns:
        `rows`, `answered_rows`, `kept_rows`, `prompt_tokens`, `completion_tokens`, `seconds` (of the engine, for the
        answers present) and `tokens_per_second`.
    """
    fresh = {row["row_id"]: row for row in read_answers(answers).to_pylist()} if prepared.to_answer else {}
    table = pq.read_table(prepared.inputs)
    found = [_answer_row(row_id, prepared, fresh, model) for row_id in table["row_id"].to_pylist()]
    table = table.filter(pa.array([row is not None for row in found], pa.bool_()))
    rows = [row for row in found if row is not None]
    answered = pa.Table.from_pylist(rows, schema=ANSWERED)
    inputs = table.drop_columns([f.name for f in ASKED])
    inputs = inputs.rename_columns(
        [f"input_{name}" if name in ANSWERED.names else name for name in inputs.column_names]
    )
    for name in ANSWERED.names:
        inputs = inputs.append_column(ANSWERED.field(name), answered[name])
    pq.write_table(inputs, out / ROWS, compression="zstd")
    seconds = prepared.kept_seconds + (read_engine_report(answers)["seconds"] if prepared.to_answer else 0.0)
    usage = _usage(rows, seconds)
    (out / RUN).write_text(json.dumps({"model": model.as_json(), **usage}, indent=1, sort_keys=True))
    return {**usage, "answered_rows": len(fresh), "kept_rows": len(prepared.kept)}


def prompt_hash(token_ids: list[int]) -> str:
    """Short SHA-256 of a prompt's token ids, as int32 little-endian bytes."""
    return hashlib.sha256(np.asarray(token_ids, "<i4").tobytes()).hexdigest()[:16]


def read_run(outputs: Path) -> dict[str, Any]:
    """The model and the usage a published partition records."""
    return json.loads((outputs / RUN).read_text())


def _token_ids(row: Mapping[str, Any], renderer: Renderer) -> list[int]:
    if row["refused"]:
        reason, _, detail = row["refused"].partition(": ")
        raise RowRefused(reason, detail)
    return renderer.encode_prompt(row["messages"], row["tools"])


def _earlier(previous: Path | None, model: ModelInUse) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    """Usable answers of an earlier run by row id and prompt hash, and what that run records."""
    if previous is None:
        return {}, {}
    run = read_run(previous)
    if run["model"] != json.loads(json.dumps(model.as_json())):
        return {}, {}
    rows = pq.read_table(previous / ROWS, columns=["row_id", *ANSWERED.names]).to_pylist()
    return {(row.pop("row_id"), row["prompt_hash"]): row for row in rows if row["error"] is None}, run


def _share_of_seconds(kept: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any]) -> float:
    if not kept:
        return 0.0
    tokens = sum(row["completion_tokens"] for row in kept.values())
    if tokens == run["completion_tokens"]:
        return run["seconds"]  # to the last bit: an unchanged partition keeps its fingerprint
    return run["seconds"] * tokens / run["completion_tokens"]


def _answer_row(
    row_id: str, prepared: PreparedPartition, fresh: Mapping[str, Mapping[str, Any]], model: ModelInUse
) -> dict[str, Any] | None:
    if row_id in prepared.kept:
        return prepared.kept[row_id]
    answer = dict(fresh.get(row_id, {}))
    if row_id in prepared.refusals:
        answer = {"completion": "", "finish_reason": "error", "prompt_tokens": 0, "completion_tokens": 0}
        answer |= {"error": prepared.refusals[row_id], "latency_seconds": 0.0}
    if not answer:
        return None
    named = {"model_name": model.name, "model_version": model.version, "variant": model.variant}
    return {**answer, **named, "prompt_hash": prepared.hashes.get(row_id)}


def _usage(rows: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    completion_tokens = sum(row["completion_tokens"] for row in rows)
    return {
        "rows": len(rows),
        "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
        "completion_tokens": completion_tokens,
        "seconds": seconds,
        "tokens_per_second": completion_tokens / seconds if seconds else 0.0,
    }
