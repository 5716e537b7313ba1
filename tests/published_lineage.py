"""A small lineage as its assets would have published it, made in a second from the session's tiny model.

`from published_lineage import ...` works in every test, because `tests/` is where the root conftest lives.
"""

import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.assets.conventions import Lineage, materialized
from llm_assets.data import TokenizationConfig
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.engine.tasks import GenerationConfig
from llm_assets.evaluation.scoreboard import ANSWER_ROWS
from llm_assets.registry.tracking_store import create_database
from llm_assets.resources.artifact_store import ArtifactStore

MESSAGES = pa.list_(
    pa.struct([(name, pa.string()) for name in ("role", "content", "tool_calls", "tool_call_id", "name")])
)
CHAT = pa.schema([("row_id", pa.string()), ("messages", MESSAGES), ("tools", pa.string()), ("extras", pa.string())])
CONTEXT = "CREATE TABLE orders (id INTEGER, customer TEXT, total INTEGER); INSERT INTO orders VALUES {rows};"
ROWS = "(1,'Rosa',5),(2,'Ali',7),(3,'Rosa',9),(4,'Bo',8),(5,'Bo',5),(6,'Ali',9)"
QUESTIONS = {
    "how many orders does the customer 'Rosa' have?": "SELECT COUNT(*) FROM orders WHERE customer = 'Rosa';",
    "which customer has the largest total?": "SELECT customer FROM orders ORDER BY total DESC LIMIT 1;",
    "how many orders are there?": "SELECT COUNT(*) FROM orders;",
    "which orders has the customer 'Nobody'?": "SELECT id FROM orders WHERE customer = 'Nobody';",
    "list every customer": "SELECT DISTINCT customer FROM orders;",
    "what is the total of 'Bo'?": "SELECT SUM(total) FROM orders WHERE customer = 'Bo';",
}


@dataclass(frozen=True)
class PublishedLineage:
    """Directories by asset, laid out as the assets publish them."""

    base: Path
    chat: Path
    tokenized: Path
    adapter: Path
    merged: Path
    variant: Path


def publish_lineage(tiny_base: Path, root: Path) -> PublishedLineage:
    """Write chat and tokenized datasets, training records, a merged model and one GGUF variant."""
    from llm_assets.quantization.config import QuantizationConfig
    from llm_assets.quantization.quantize import quantize

    lineage = PublishedLineage(*(root / name for name in ("base", "chat", "tokenized", "adapter", "merged", "variant")))
    shutil.copytree(tiny_base, lineage.base)
    shutil.copytree(tiny_base, lineage.merged)
    (lineage.merged / "merge.json").write_text(json.dumps({"policy": "dequantized", "dtype": "bfloat16"}))
    write_chat(lineage.chat)
    lineage.tokenized.mkdir()
    tokenize_dataset(lineage.chat, lineage.base, lineage.tokenized, TokenizationConfig(), lambda _: None)
    write_adapter(lineage.adapter)
    lineage.variant.mkdir()
    quantize(lineage.merged, lineage.tokenized, lineage.variant, QuantizationConfig(scheme="gguf_q8_0"), lambda _: None)
    return lineage


def write_chat(chat: Path) -> None:
    """Six test rows, one of them without a row in its answer, and the same as training and validation rows."""
    chat.mkdir()
    for split in ("train", "validation", "test"):
        rows = [
            {
                "row_id": f"{split}-{number}",
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ],
                "tools": None,
                "extras": json.dumps({"sql_context": CONTEXT.format(rows=ROWS)}),
            }
            for number, (question, answer) in enumerate(QUESTIONS.items())
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=CHAT), chat / f"{split}.parquet")


def write_adapter(adapter: Path) -> None:
    """A training record, as the trainer leaves it."""
    adapter.mkdir()
    record = {
        "method": "qlora",
        "evaluation_loss": 0.25,
        "base_evaluation_loss": 4.5,
        "steps": 20,
        "parameters": {"learning_rate": 0.004, "rank": 32},
        "quantized_modules": ["model.layers.0.self_attn.q_proj"],
    }
    (adapter / "training.json").write_text(json.dumps(record))


def write_evaluation(directory: Path, matches: Sequence[int], tokens_per_second: float = 100.0) -> Path:
    """A published evaluation whose merged model answered row `i` right where `matches[i]` is 1, and the base never."""
    directory.mkdir(parents=True)
    share = sum(matches) / len(matches)
    interval = {"value": share, "low": share, "high": share, "rows": len(matches)}
    line = {"exact_match": share, "length_capped_share": 0.0, "bytes": 1000, "engine": "vllm", "engine_reason": ""}
    timed = {"tokens_per_second": tokens_per_second, "load_seconds": 1.0}
    scoreboard = {
        "rows": len(matches),
        "rows_digest": "exam",
        "metrics": ["exact_match"],
        "primary": "exact_match",
        "generation": GenerationConfig(max_new_tokens=7, stop=(";",)).model_dump(mode="json"),
        "candidates": {"base": {**line, **timed, "exact_match": 0.0}, "merged": {**line, **timed}},
        "improvement": {"merged": interval},
        "recovery": {"gguf_q8_0": {**interval, "value": 1.0}},
    }
    (directory / "scoreboard.json").write_text(json.dumps(scoreboard))
    rows = [
        {"candidate": "merged", "row_id": f"row-{place:03}", "answer": "", "exact_match": float(match)}
        for place, match in enumerate(matches)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWER_ROWS), directory / "answers.parquet")
    return directory


@functools.cache
def empty_database() -> bytes:
    """An MLflow database without experiments: its migrations take seconds, so they run once."""
    with tempfile.TemporaryDirectory() as scratch:
        create_database(Path(scratch) / "mlflow.db")
        return (Path(scratch) / "mlflow.db").read_bytes()


def standing_in(key: dg.AssetKey, directory: Path, deps: Sequence[dg.AssetKey] = ()) -> dg.AssetsDefinition:
    """An upstream asset that publishes a prepared directory."""

    @dg.asset(key=key, deps=list(deps))
    def prepared(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        with store.staging() as staged:
            shutil.copytree(directory, staged, dirs_exist_ok=True)
            return materialized(store.publish(context.asset_key, staged), {})

    return prepared


def upstream_of_evaluation(lineage: Lineage, published: PublishedLineage) -> list[dg.AssetsDefinition]:
    """Stand-ins for everything the evaluation and the registry read."""
    directories = {
        ("base_model",): published.base,
        ("chat_dataset",): published.chat,
        ("tokenized_dataset",): published.tokenized,
        ("lora_adapter",): published.adapter,
        ("merged_model",): published.merged,
        ("quantized", "gguf_q8_0"): published.variant,
    }
    return [standing_in(lineage.key(*path), directory) for path, directory in directories.items()]
