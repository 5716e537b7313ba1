"""Chat datasets of a few rows, as `chat_dataset` publishes them.

`from chat_rows_by_hand import ...` works in every test, because `tests/` is where the root conftest lives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.chat_rows import CHAT
from llm_assets.data.messages import message
from llm_assets.data.splits import SPLITS


def two_turns(name: str, n: int, answer: str = "SELECT {n};") -> list[dict[str, Any]]:
    """A conversation of two questions and answers."""
    return [
        message("user", f"how many orders of {name} {n}? " + "really " * (n % 7)),
        message("assistant", answer.format(n=n)),
        message("user", "and customers?"),
        message("assistant", f"SELECT {n} FROM customers;"),
    ]


def write_split(directory: Path, split: str, conversations: Sequence[list[dict[str, Any]]], tools: Any = None) -> None:
    """Write one split; row ids are the split's name and the place."""
    rows = [
        {"row_id": f"{split}{n}", "messages": messages, "tools": tools, "extras": "{}"}
        for n, messages in enumerate(conversations)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, CHAT), directory / f"{split}.parquet")


def write_two_turn_chat(directory: Path, train: int = 60, held_out: int = 12) -> Path:
    """Two-turn conversations in every split."""
    for split, rows in zip(SPLITS, (train, held_out, held_out), strict=True):
        write_split(directory, split, [two_turns(split, n) for n in range(rows)])
    return directory
