"""Conversations as they lie in files: columns of Arrow to and from messages, without objects that nobody reads."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.messages import MESSAGE

CHAT = pa.schema(
    [("row_id", pa.string()), ("messages", pa.list_(MESSAGE)), ("tools", pa.string()), ("extras", pa.string())]
)
BATCH_ROWS = 2048
BATCH_BYTES = 32 << 20
MESSAGE_FIELDS = [MESSAGE.field(n) for n in range(MESSAGE.num_fields)]


def chat_batch(
    row_ids: Sequence[str],
    messages: Sequence[Sequence[dict[str, Any]]],
    tools: Sequence[str | None],
    extras: Sequence[str],
) -> pa.RecordBatch:
    """Conversations as one record batch of the chat dataset's schema."""
    turns = [turn for conversation in messages for turn in conversation]
    offsets = [0]
    for conversation in messages:
        offsets.append(offsets[-1] + len(conversation))
    columns = [pa.array([turn[field.name] for turn in turns], field.type) for field in MESSAGE_FIELDS]
    listed = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=MESSAGE_FIELDS), type=CHAT.types[1]
    )
    texts = [pa.array(column, pa.string()) for column in (row_ids, tools, extras)]
    return pa.RecordBatch.from_arrays([texts[0], listed, *texts[1:]], schema=CHAT)


def messages_of(batch: pa.RecordBatch) -> list[list[dict[str, Any]]]:
    """The conversations of a batch, with role, content and tool calls of each message."""
    listed = batch.column("messages")
    turns = listed.flatten()
    columns = [turns.field(name).to_pylist() for name in ("role", "content", "tool_calls")]
    made = [
        {"role": role, "content": content, "tool_calls": calls} for role, content, calls in zip(*columns, strict=True)
    ]
    ends = listed.value_lengths().to_pylist()
    conversations, start = [], 0
    for length in ends:
        conversations.append(made[start : start + length])
        start += length
    return conversations


def read_chat(path: Path) -> Iterator[tuple[list[str], list[list[dict[str, Any]]]]]:
    """Row ids and conversations of one split's file, batch by batch."""
    for batch in batches(path, ["row_id", "messages"]):
        yield batch.column("row_id").to_pylist(), messages_of(batch)


def batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of a Parquet file: 2048 rows, or fewer where rows are large, so that memory stays flat."""
    with pq.ParquetFile(path) as file:
        bytes_held = sum(file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups))
        bytes_per_row = max(1, bytes_held // max(1, file.metadata.num_rows))
        size = max(1, min(BATCH_ROWS, BATCH_BYTES // bytes_per_row))
        for group in range(file.metadata.num_row_groups):  # one by one: read ahead, they cost 80 MB
            yield from file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False)
