"""Raw rows become curated conversations in three splits, in two passes over files with flat memory per row.

The first pass reads each row and writes what is well formed to a scratch file; the second writes the splits without
the rows that repeat one another.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.curation import CurationConfig, judge, repeated, source_rows
from llm_assets.data.formats import FormatConfig
from llm_assets.data.messages import MESSAGE, Conversation, RowRefused
from llm_assets.data.similarity import content_text, key_of
from llm_assets.data.splits import SPLITS, SplitConfig, refuse_empty_splits, split_of

CHAT = pa.schema(
    [("row_id", pa.string()), ("messages", pa.list_(MESSAGE)), ("tools", pa.string()), ("extras", pa.string())]
)
KEYS = pa.schema([("split", pa.string()), ("content_key", pa.string()), ("prompt_key", pa.string())])
CANDIDATE = pa.schema([*CHAT, *KEYS, ("content", pa.string())])
DROPPED = pa.schema([("row_id", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
REPORT = "report.json"
ANY = ""  # key of the format for sources without one of their own


class NoConversationKept(LLMAssetsError):
    """Every row was dropped."""


def build_chat_dataset(
    rows: Path,
    out: Path,
    format: FormatConfig,
    curation: CurationConfig,
    split: SplitConfig,
    *,
    formats_by_source: Mapping[str, FormatConfig] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Write `{train,validation,test}.parquet`, `dropped.parquet` and `report.json` to `out`.

    Args:
        rows: The `rows.parquet` of a raw dataset.
        out: An empty directory.
        format: How a row reads as a conversation.
        curation: What is dropped.
        split: How rows are split.
        formats_by_source: Formats of the sources whose rows read differently.
        log: Told about the progress.

    Returns:
        The report: `{"ingested": n, "kept": n, "dropped": {reason: n}, "splits": {split: n}}`.

    Raises:
        NoConversationKept: every row was dropped; gives the reasons.
        SplitEmpty: a split with a share got no row.
        PredicateInvalid: `curation.where` is refused by DuckDB.
    """
    candidates = out / "candidates.scratch"
    ingested, dropped = _read(rows, candidates, {**(formats_by_source or {}), ANY: format}, curation, split, log=log)
    verdicts = repeated(candidates, curation, log)
    kept = _write_splits(candidates, out, verdicts, dropped)
    candidates.unlink()
    reasons = dict(sorted(Counter(row["reason"] for row in dropped).items()))
    if not sum(kept.values()):
        first = dropped[0] if dropped else {"row_id": "-", "reason": "no row", "detail": ""}
        raise NoConversationKept(
            f"None of {ingested} rows became a conversation: {reasons}. First: row {first['row_id']}, "
            f"{first['reason']}: {first['detail']}. Correct the format's columns or the curation."
        )
    refuse_empty_splits(kept, split)
    pq.write_table(pa.Table.from_pylist(dropped, DROPPED), out / "dropped.parquet", compression="zstd")
    report = {"ingested": ingested, "kept": sum(kept.values()), "dropped": reasons, "splits": kept}
    (out / REPORT).write_text(json.dumps(report, indent=1))
    return report


def _read(
    rows: Path,
    candidates: Path,
    formats: Mapping[str, FormatConfig],
    curation: CurationConfig,
    split: SplitConfig,
    *,
    log: Callable[[str], None],
) -> tuple[int, list[dict[str, str]]]:
    """First pass: well-formed conversations to the scratch file, the others to the returned list."""
    total, read, dropped = pq.read_metadata(rows).num_rows, 0, []
    next_report = total // 20
    with pq.ParquetWriter(candidates, CANDIDATE, compression="zstd") as writer:
        for batch in source_rows(rows, curation):
            found = []
            for row in batch:
                format = formats.get(row["source"], formats[ANY])
                try:
                    found.append(_candidate(row, judge(row, format, curation), format, split))
                except RowRefused as refused:
                    dropped.append({"row_id": row["row_id"], "reason": refused.reason, "detail": refused.detail})
            if found:
                writer.write_batch(pa.RecordBatch.from_pylist(found, CANDIDATE))
            read += len(batch)
            if read >= next_report:
                log(f"read {read} of {total} rows, {len(dropped)} dropped")
                next_report += max(1, total // 20)
    return read, dropped


def _candidate(row: dict[str, Any], found: Conversation, format: FormatConfig, split: SplitConfig) -> dict[str, Any]:
    content = content_text(found.messages)
    prompt_key = key_of(content_text(found.messages[:-1]))
    extras = {name: row.get(name) for name in format.keep_columns}
    return {
        "row_id": row["row_id"],
        "messages": found.messages,
        "tools": found.tools,
        "extras": json.dumps(extras, ensure_ascii=False),
        "split": split_of(row, prompt_key, split),
        "content_key": key_of(content),
        "prompt_key": prompt_key,
        "content": content,
    }


def _write_splits(
    candidates: Path, out: Path, verdicts: dict[int, tuple[str, str]], dropped: list[dict[str, str]]
) -> dict[str, int]:
    """Second pass: each kept row to its split's file, in row order; appends what is left out to `dropped`."""
    writers = {split: pq.ParquetWriter(out / f"{split}.parquet", CHAT, compression="zstd") for split in SPLITS}
    kept: dict[str, int] = dict.fromkeys(SPLITS, 0)
    n = 0
    for batch in pq.ParquetFile(candidates).iter_batches(2048):
        splits, ids = batch.column("split").to_pylist(), batch.column("row_id").to_pylist()
        places: dict[str, list[int]] = {split: [] for split in SPLITS}
        for at, (split, row_id) in enumerate(zip(splits, ids, strict=True)):
            if n + at in verdicts:
                reason, detail = verdicts[n + at]
                dropped.append({"row_id": row_id, "reason": reason, "detail": detail})
            else:
                places[split].append(at)
        _write_taken(writers, batch.select(CHAT.names), places)
        kept = {split: kept[split] + len(places[split]) for split in SPLITS}
        n += batch.num_rows
    for writer in writers.values():
        writer.close()
    return kept


def _write_taken(
    writers: dict[str, pq.ParquetWriter], batch: pa.RecordBatch, places: dict[str, Sequence[int]] | dict[str, list[int]]
) -> None:
    for split, writer in writers.items():
        if places[split]:
            writer.write_batch(batch.take(pa.array(places[split], pa.int64())).cast(CHAT))
