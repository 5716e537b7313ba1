"""A partition's rows, with a stable id and the conversation each one asks.

A row that cannot be asked keeps its place with the reason in `refused`, so that every row that came in also comes out.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.formats import FormatConfig, prompt_messages, prompt_tools
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.data.messages import MESSAGE, RowRefused
from llm_assets.data.nested import nested_columns, opened
from llm_assets.data.source_files import find_files
from llm_assets.data.sources import SourceConfig
from llm_assets.inference.config import InferenceConfig

ASKED = (pa.field("messages", pa.list_(MESSAGE)), pa.field("tools", pa.string()), pa.field("refused", pa.string()))
DROPPED = ("source", "content_hash", "source_file", "source_line")  # of ingestion; an answer is traced by its row id


@dataclass(frozen=True)
class InputReport:
    """What one partition holds.

    Attributes:
        rows: Rows read.
        refused: Rows that cannot be asked.
        newest_file_time: Last modification of the newest input file, seconds since the epoch.
    """

    rows: int
    refused: int
    newest_file_time: float


def read_partition(
    partition: str, config: InferenceConfig, format: FormatConfig, out: Path, log: Callable[[str], None]
) -> InputReport:
    """Write a partition's `rows.parquet` in `out`: the input columns, `row_id`, `messages`, `tools` and `refused`.

    Raises:
        SourceMissing: the partition has no file.
        SourceEmpty: its files hold no row.
        SourceUnreadable: a file is malformed; names the place.
        RowMissingColumn: a column the format asks from is missing; names file and row.
    """
    return read_rows(
        SourceConfig(path=config.inputs_of(partition), name=partition, max_refused_share=0), format, out, log
    )


def read_rows(source: SourceConfig, format: FormatConfig, out: Path, log: Callable[[str], None]) -> InputReport:
    """As `read_partition`, for the rows of any source; a database has no file whose age could be told."""
    newest = max((file.state["modified_seconds"] for file in find_files([source])), default=time.time())
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        ingest([source], format.prompt_columns, Path(scratch), log)
        ingested = pq.ParquetFile(Path(scratch) / ROWS)
        names = [n for n in ingested.schema_arrow.names if n not in {*DROPPED, *(field.name for field in ASKED)}]
        schema = pa.schema([*(ingested.schema_arrow.field(name) for name in names), *ASKED])
        rows = refused = 0
        with pq.ParquetWriter(out / ROWS, schema, compression="zstd") as writer:
            for batch in ingested.iter_batches(2048):
                asked = _asked(batch, format)
                rows += batch.num_rows
                refused += batch.num_rows - asked["refused"].null_count
                columns = [*(batch.column(name) for name in names), *(asked[field.name] for field in ASKED)]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return InputReport(rows, refused, newest)


def _asked(batch: pa.RecordBatch, format: FormatConfig) -> dict[str, pa.Array]:
    asked = []
    nested = nested_columns(batch.schema)
    for row in (opened(raw, nested) for raw in batch.to_pylist()):
        try:
            messages, tools = prompt_messages(row, format), prompt_tools(row, format)
            refused = _nothing_asked(row, messages, format)
        except RowRefused as refusal:
            messages, tools, refused = None, None, str(refusal)
        asked.append({"messages": messages, "tools": tools, "refused": refused})
    return {field.name: pa.array([row[field.name] for row in asked], field.type) for field in ASKED}


def _nothing_asked(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], format: FormatConfig) -> str | None:
    blank = [name for name in format.prompt_columns if not str(row.get(name) or "").strip()]
    if blank:
        return f"empty_prompt: column {', '.join(blank)} is empty"
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        return "empty_prompt: no user message with text"
    return None
