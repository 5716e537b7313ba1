"""Rows of single messages that name their parent, as OpenAssistant publishes them, joined into one row per thread.

A thread runs from a first message to its end: along the best-ranked replies, or to every reply that has none itself.
Messages are joined within a file, in DuckDB, which spills to disk; a message that no first message leads to is refused
and counted.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.reading.batches import BATCH_ROWS, NESTED, TEXT, Batch, Damage
from llm_assets.data.sources import SourceConfig, SourceUnreadable, ThreadsConfig
from llm_assets.data.spilling import bounded_connection

PARTS = ("id", "parent", "role", "text", "rank")
STORED = pa.schema([("line", pa.int64()), *((name, pa.string()) for name in PARTS)])
MESSAGES = """
    CREATE TABLE message AS
    SELECT *, row_number() OVER (PARTITION BY parent ORDER BY TRY_CAST(rank AS DOUBLE) NULLS LAST, line) AS place
    FROM (FROM read_parquet($stored) QUALIFY row_number() OVER (PARTITION BY id ORDER BY line) = 1)
"""
THREADS = """
    WITH RECURSIVE walk AS (
        SELECT id AS tree, id AS leaf, line, [{'role': role, 'content': text}] AS messages
        FROM message WHERE parent IS NULL
        UNION ALL
        SELECT tree, id, walk.line, list_append(messages, {'role': role, 'content': text})
        FROM walk JOIN message ON parent = leaf WHERE place <= $followed
    )
    SELECT line, tree, leaf, CAST(to_json(messages) AS VARCHAR) AS messages
    FROM walk WHERE leaf NOT IN (SELECT parent FROM message WHERE parent IS NOT NULL) ORDER BY line, leaf
"""
UNREACHED = """
    WITH RECURSIVE reached AS (
        SELECT id, line FROM message WHERE parent IS NULL
        UNION ALL
        SELECT message.id, message.line FROM reached JOIN message ON parent = reached.id
    )
    SELECT line, id, parent FROM read_parquet($stored) WHERE line NOT IN (SELECT line FROM reached) ORDER BY line
"""


def thread_batches(batches: Iterator[Batch], source: SourceConfig, scratch: Path) -> Iterator[Batch]:
    """Yield one row per thread: its `messages`, and the ids `tree_id` and `leaf_id` of its first and last message.

    Raises:
        SourceUnreadable: the file lacks a column that `threads` names.
    """
    config, stored = source.threads or ThreadsConfig(), scratch / "thread messages.parquet"
    with pq.ParquetWriter(stored, STORED) as writer:
        for batch in batches:
            if batch.refused:
                yield Batch([], {}, {}, batch.refused)
            writer.write_batch(_stored(batch, config, source))
    with bounded_connection(beside=stored, memory_limit="512MB") as connection:
        connection.execute(MESSAGES, {"stored": str(stored)})
        lost = connection.execute(UNREACHED, {"stored": str(stored)}).fetchall()
        if lost:
            yield Batch([], {}, {}, [(line, _lost(id, parent)) for line, id, parent in lost])
        followed = {"followed": 1 if config.keep == "best" else 2**31}
        for found in connection.sql(THREADS, params=followed).to_arrow_reader(BATCH_ROWS):
            columns = {"messages": found["messages"], "tree_id": found["tree"], "leaf_id": found["leaf"]}
            kinds = {"messages": frozenset((NESTED,)), **dict.fromkeys(("tree_id", "leaf_id"), frozenset((TEXT,)))}
            yield Batch(found["line"].to_pylist(), columns, kinds)
    stored.unlink()


def _stored(batch: Batch, config: ThreadsConfig, source: SourceConfig) -> pa.RecordBatch:
    columns = [pa.array(batch.lines, pa.int64())]
    for part in PARTS:
        name = getattr(config, f"{part}_column")
        if name not in batch.columns and part not in ("rank", "parent"):
            raise SourceUnreadable(
                f"Source '{source.label}': its messages have no column '{name}', but {', '.join(batch.columns)}. Name "
                f"it in threads.{part}_column."
            )
        columns.append(batch.columns.get(name, pa.nulls(len(batch.lines), pa.string())))
    return pa.RecordBatch.from_arrays(columns, schema=STORED)


def _lost(id: str, parent: str | None) -> Damage:
    detail = f"message {id}: no first message leads to it (parent {parent}), or its id occurs before"
    return Damage("orphan_message", detail, str(id).encode())
