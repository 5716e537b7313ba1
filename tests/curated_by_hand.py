"""Chat datasets made of a few rows, without ingestion."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data import CurationConfig, SplitConfig
from llm_assets.data.chat_dataset import build_chat_dataset
from llm_assets.data.formats import PromptCompletionFormat

ALL_TRAIN = SplitConfig(validation=0, test=0)
TOPICS = ["river", "mountain", "castle", "garden", "engine", "violin", "desert", "harbor", "library", "comet"]


def row(prompt: str, completion: str = "yes", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


def questions(count: int) -> list[dict[str, Any]]:
    """Rows that have few words in common with one another."""
    return [row(" ".join(f"{topic}{n}" for topic in TOPICS), f"answer {n}") for n in range(count)]


def curated(
    directory: Path,
    rows: list[dict[str, Any]],
    curation: CurationConfig | None = None,
    split: SplitConfig = ALL_TRAIN,
    **format: Any,
) -> tuple[Path, dict[str, Any]]:
    """Write raw rows with ids r0, r1, …, and the chat dataset made of them; returns its directory and report."""
    raw, out = directory / "rows.parquet", directory / "chat"
    out.mkdir(exist_ok=True)
    own = [{"row_id": f"r{n}", "source": "rows", "content_hash": "", **r} for n, r in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(own, schema=_schema(own)), raw)
    config = PromptCompletionFormat(**format)
    report = build_chat_dataset(raw, out, config, curation or CurationConfig(), split, log=lambda _: None)
    return out, report


def kept_ids(chat: Path, split: str = "train") -> list[str]:
    return pq.read_table(chat / f"{split}.parquet")["row_id"].to_pylist()


def dropped(chat: Path) -> dict[str, tuple[str, str]]:
    """Reason and detail of each dropped row."""
    rows = pq.read_table(chat / "dropped.parquet").to_pylist()
    return {r["row_id"]: (r["reason"], r["detail"]) for r in rows}


def prompts(chat: Path, split: str) -> list[str]:
    return [r["messages"][-2]["content"] for r in pq.read_table(chat / f"{split}.parquet").to_pylist()]


def answers(chat: Path, split: str = "train") -> list[str]:
    return [r["messages"][-1]["content"] for r in pq.read_table(chat / f"{split}.parquet").to_pylist()]


def extras(chat: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in pq.read_table(chat / "train.parquet")["extras"].to_pylist()]


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    values = {name: [r.get(name) for r in rows] for name in dict.fromkeys(name for r in rows for name in r)}
    return pa.schema([(name, pa.array(column).type) for name, column in values.items()])
