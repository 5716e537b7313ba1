"""Rows of a tokenized dataset beside the conversations they were made from, a few per split, spread evenly."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from llm_assets.data.splits import SPLITS
from llm_assets.data.token_files import read_tokens
from llm_assets.data.truncation import without_cut

COLUMNS = ("row_id", "input_ids", "spans", "prompt_tokens", "cut_messages")


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        split: Where it is.
        row_id: Its id.
        input_ids: Its tokens.
        spans: Stretches that carry loss.
        prompt_tokens: Tokens before the last answer.
        messages: The conversation as it was rendered, without what was cut to fit.
        tools: JSON text of the tools, or None.
    """

    split: str
    row_id: str
    input_ids: list[int]
    spans: list[tuple[int, int]]
    prompt_tokens: int
    messages: list[Mapping[str, Any]]
    tools: str | None


def sampled_rows(tokenized: Path, chat: Path, rows: int) -> Iterator[Sample]:
    """Up to `rows` rows of each split, evenly over the split."""
    for split in SPLITS:
        total = read_tokens(tokenized, split, ["prompt_tokens"]).num_rows
        if not total:
            continue
        places = sorted(set(np.linspace(0, total - 1, rows, dtype=int).tolist()))
        picked = {row["row_id"]: row for row in read_tokens(tokenized, split, COLUMNS, places).to_pylist()}
        columns = ["row_id", "messages", "tools"]
        table = pq.read_table(chat / f"{split}.parquet", columns=columns, filters=[("row_id", "in", list(picked))])
        for row in table.to_pylist():
            tokens = picked[row["row_id"]]
            spans = tokens["spans"]
            yield Sample(
                split=split,
                row_id=row["row_id"],
                input_ids=tokens["input_ids"],
                spans=list(zip(spans[::2], spans[1::2], strict=True)),
                prompt_tokens=tokens["prompt_tokens"],
                messages=without_cut(row["messages"], tokens["cut_messages"]),
                tools=row["tools"],
            )
