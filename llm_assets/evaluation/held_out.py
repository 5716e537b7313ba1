"""The rows every candidate answers: test rows, as the very tokens the adapter was trained to continue.

Prompts are the tokenized dataset's ids cut before the last assistant turn, so no template is rendered again. A row is
chosen by the hash of its id: adding data keeps most of an earlier choice, which is what lets two versions be compared.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.token_files import read_tokens


class NoHeldOutRows(LLMAssetsError):
    """There is no test row to evaluate on."""


class SqlContextMissing(LLMAssetsError):
    """sql_execution has no tables to run on."""


@dataclass(frozen=True)
class HeldOut:
    """Aligned columns, one entry per row, in row id order.

    Attributes:
        row_ids: Stable row ids.
        prompts: The last user turn, for a person to read.
        expected: Content of the final assistant turn.
        prompt_token_ids: What is continued.
        input_ids: Prompt and expected answer, as trained.
        labels: As `input_ids`, -100 where there is no loss.
        sql_contexts: `CREATE TABLE …; INSERT …` of each row; empty texts where not asked for.
    """

    row_ids: Sequence[str]
    prompts: Sequence[str]
    expected: Sequence[str]
    prompt_token_ids: Sequence[Sequence[int]]
    input_ids: Sequence[Sequence[int]]
    labels: Sequence[Sequence[int]]
    sql_contexts: Sequence[str]

    @property
    def digest(self) -> str:
        """SHA-256 over ids and expected answers: equal digests mean the same exam."""
        text = json.dumps([list(self.row_ids), list(self.expected)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_held_out(chat: Path, tokenized: Path, rows: int, seed: int, sql_context_column: str | None = None) -> HeldOut:
    """Choose at most `rows` test rows that end in an assistant turn with text.

    Raises:
        NoHeldOutRows: the test split is empty, or no row of it ends in an answer.
        SqlContextMissing: a chosen row lacks `sql_context_column`; names the row and the column.
    """
    conversations = {row["row_id"]: row for row in pq.read_table(chat / "test.parquet").to_pylist()}
    answered = [row_id for row_id, row in conversations.items() if (row["messages"][-1]["content"] or "").strip()]
    tokens = read_tokens(tokenized, "test", ["row_id", "input_ids", "labels", "prompt_tokens"])
    tokens = tokens.filter(pc.is_in(tokens["row_id"], value_set=pa.array(answered, pa.string())))  # type: ignore[attr-defined]
    if not tokens.num_rows:
        raise NoHeldOutRows(
            f"{chat / 'test.parquet'} has no tokenized row that ends in an assistant answer. "
            "Raise split.test, or tokenization.max_length_tokens if the rows were too long."
        )
    chosen = sorted(tokens.to_pylist(), key=lambda row: _rank(row["row_id"], seed))[:rows]
    chosen.sort(key=lambda row: row["row_id"])
    sources = [conversations[row["row_id"]] for row in chosen]
    return HeldOut(
        row_ids=[row["row_id"] for row in chosen],
        prompts=[_last_user_turn(source["messages"]) for source in sources],
        expected=[source["messages"][-1]["content"] for source in sources],
        prompt_token_ids=[row["input_ids"][: row["prompt_tokens"]] for row in chosen],
        input_ids=[row["input_ids"] for row in chosen],
        labels=[row["labels"] for row in chosen],
        sql_contexts=[_context(source, sql_context_column) for source in sources],
    )


def _rank(row_id: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest()


def _last_user_turn(messages: Sequence[dict[str, Any]]) -> str:
    turns = [message["content"] or "" for message in messages[:-1] if message["role"] == "user"]
    return turns[-1] if turns else ""


def _context(source: dict[str, Any], column: str | None) -> str:
    if column is None:
        return ""
    extras = json.loads(source["extras"] or "{}")
    if not isinstance(extras.get(column), str):
        raise SqlContextMissing(
            f"Row {source['row_id']} has no {column!r}, which sql_execution needs to build its tables. "
            f"Add {column} to format.keep_columns, set evaluation.sql_context_column, or drop the metric."
        )
    return extras[column]
