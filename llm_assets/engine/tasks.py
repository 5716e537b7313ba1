"""What a generation task is: a model directory, a file of token ids to continue, and a directory of answers.

Prompts cross the process boundary as token ids rendered once by the training template, never as text, so an engine has
no chance to add a second BOS or another template. The cost is one Parquet file per task.

    requests.parquet: row_id string, prompt_token_ids list<int32>
    part-*.parquet:   row_id, completion, finish_reason, prompt_tokens, completion_tokens, error, latency_seconds
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError

EngineName = Literal["vllm", "llama_cpp"]
ENGINE_REPORT = "engine.json"
REQUESTS = pa.schema(
    [pa.field("row_id", pa.string(), nullable=False), pa.field("prompt_token_ids", pa.list_(pa.int32()))]
)
ANSWERS = pa.schema(
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


class RequestsInvalid(LLMAssetsError):
    """A requests file would lose or repeat rows: duplicate ids, or ids and prompts of different number."""


class AnswersMissing(LLMAssetsError):
    """A task's output directory holds no answers."""


class GenerationConfig(Config):
    """How the model continues a prompt. Every knob is passed to the engine explicitly; none is inherited."""

    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="0 is greedy decoding.")
    max_new_tokens: int = Field(default=128, ge=1, description="Completion tokens after which a row is cut off.")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="Nucleus sampling; 1 keeps the whole distribution.")
    stop: tuple[str, ...] = Field(default=(), description="Texts that end a completion besides the model's EOS tokens.")
    seed: int = Field(default=0, ge=0, description="Each row samples from its own seed, derived from this and its id.")

    @model_validator(mode="after")
    def _no_empty_stop(self) -> "GenerationConfig":
        if "" in self.stop:
            raise ValueError(
                "generation.stop holds an empty text, which would end every completion at once. Remove it."
            )
        return self


class EngineConfig(Config):
    """Sizes of the inference engine. What is unset is planned from the model, the requests and the device memory."""

    max_model_len: int | None = Field(default=None, ge=8, description="Prompt plus completion tokens of one row.")
    max_num_seqs: int | None = Field(default=None, ge=1, description="Rows decoded at the same time.")
    max_num_batched_tokens: int = Field(default=4096, ge=32, description="Tokens of one engine step, prefill included.")
    kv_cache_bytes: int | None = Field(default=None, ge=1, description="Bytes of the KV cache.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="Activation type; auto takes the checkpoint's."
    )
    block_size: int = Field(
        default=32, ge=16, multiple_of=16, description="Tokens per KV block; a prefix is reused in whole blocks."
    )
    device_memory_bytes: int | None = Field(
        default=None, ge=1, description="Memory of the device the engine runs on; detected when unset."
    )
    device_memory_share: float = Field(
        default=0.9, gt=0.0, le=0.98, description="Share of the device memory that weights and KV cache may take."
    )
    tensor_parallel_size: int = Field(default=1, ge=1, description="GPUs that share one model.")
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads; unset takes OMP_NUM_THREADS, else every core."
    )
    micro_batch_rows: int = Field(
        default=256, ge=1, description="Answers committed together; at most these are redone."
    )


@dataclass(frozen=True)
class GenerationTask:
    """One file of requests for one model.

    Attributes:
        name: Shown in the log.
        model: Hugging Face directory (vllm), or a `.gguf` file or the directory that holds one (llama_cpp).
        engine: Which engine loads the model.
        requests: Parquet file made by `write_requests`.
        output: Directory that receives `part-*.parquet` and `engine.json`; rows already answered there are not redone.
    """

    name: str
    model: Path
    engine: EngineName
    requests: Path
    output: Path


def write_requests(path: Path, row_ids: Sequence[str], prompt_token_ids: Sequence[Sequence[int]]) -> None:
    """Write the requests of one task.

    Raises:
        RequestsInvalid: the lengths differ, or an id occurs twice; names the first such id.
    """
    if len(row_ids) != len(prompt_token_ids):
        raise RequestsInvalid(f"{len(row_ids)} row ids for {len(prompt_token_ids)} prompts. Pass one prompt per row.")
    seen: set[str] = set()
    for row_id in row_ids:
        if row_id in seen:
            raise RequestsInvalid(f"Row id {row_id!r} occurs twice. Answers are joined by id: make the ids unique.")
        seen.add(row_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"row_id": list(row_ids), "prompt_token_ids": [list(ids) for ids in prompt_token_ids]}
    pq.write_table(pa.Table.from_pydict(columns, schema=REQUESTS), path)


def read_answers(output: Path) -> pa.Table:
    """All committed answers of a task, in no particular order; columns as `ANSWERS`.

    Raises:
        AnswersMissing: the worker has not finished this task.
    """
    parts = sorted(output.glob("part-*.parquet"))
    if not parts and not (output / ENGINE_REPORT).exists():
        raise AnswersMissing(f"{output} holds no answers. Run the task through Worker.generate or run_tasks first.")
    return pa.concat_tables([ANSWERS.empty_table(), *(pq.read_table(part).cast(ANSWERS) for part in parts)])


def read_engine_report(output: Path) -> dict[str, Any]:
    """What the engine measured while answering a task.

    Returns:
        `engine`, `engine_version`, `device`, `import_seconds`, `load_seconds`, `kv_cache_tokens`, `max_model_len`,
        `max_num_seqs`, `engine_start` (ordinal of the engine start that served the task), `rows`, `prompt_tokens`,
        `cached_prompt_tokens`, `completion_tokens`, `seconds`, `tokens_per_second` (completion tokens).

    Raises:
        AnswersMissing: the worker has not finished this task.
    """
    path = output / ENGINE_REPORT
    if not path.exists():
        raise AnswersMissing(f"{path} is missing. Run the task through Worker.generate or run_tasks first.")
    return json.loads(path.read_text())


def engine_for(model: Path) -> EngineName:
    """Which engine loads a model directory: llama.cpp where it holds a `.gguf` file, else vLLM."""
    return "llama_cpp" if model.suffix == ".gguf" or any(model.glob("*.gguf")) else "vllm"
