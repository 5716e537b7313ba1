"""Raw rows become curated conversations in three splits, in two passes over files with flat memory per row.

The first pass reads each row and writes what is well formed to a scratch file; then rows are compared by their keys and
sketches; the second pass writes the splits. Rows keep the order of the raw dataset, so unchanged rows stay where they
were when others are appended. Only hashes, row ids and lengths are held in memory, some 100 bytes a row.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.candidates import Candidates
from llm_assets.data.chat_rows import CHAT, batches, messages_of
from llm_assets.data.curation import CurationConfig
from llm_assets.data.decontamination import ProtectedRuns, benchmark_runs
from llm_assets.data.deduplication import KEPT, QUOTES, REASONS, Decision, decide
from llm_assets.data.dropped import DroppedRow, DroppedRows, excerpt_of
from llm_assets.data.formats import FormatConfig
from llm_assets.data.row_reader import Reading
from llm_assets.data.splits import SPLITS, TRAIN, SplitConfig, refuse_bad_splits

DROPPED_ROWS = "dropped.parquet"
REPORT = "report.json"
PERCENTILES = (5, 50, 95, 99, 100)


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
        The report: `{"ingested": n, "kept": n, "dropped": {reason: n}, "splits": {split: n}, "pii": {kind: n},
        "contaminated_by": {source: n}, "characters": {split: {percentile: n}}}`.

    Raises:
        NoConversationKept: every row was dropped; gives the reasons.
        SplitEmpty: a split with a share got no row.
        SplitTooSmall: a split of a fixed size got fewer rows.
        PredicateInvalid: `curation.where` is refused by DuckDB.
        PredicateFailed: a predicate failed on a row.
        BenchmarkUnreadable: a benchmark file is missing or malformed.
    """
    protected = benchmark_runs(curation.contamination) if curation.contamination else None  # refuse before the work
    reading = Reading(formats_by_source or {}, format, curation, split)
    together = bool(curation.near_duplicates and curation.near_duplicates.action == "keep_together")
    quoted = Counter[str]()
    with (
        TemporaryDirectory(dir=out, prefix=".scratch-") as scratch,
        DroppedRows(out / DROPPED_ROWS) as dropped,
        Candidates(Path(scratch), reading, dropped) as found,
    ):
        found.read(rows, log)
        if found.rows == 0:
            raise _nothing_kept(found.ingested, dropped)
        decision = decide(found.keys(), split, found.sketches, together, log)
        if protected:
            quoted = _drop_quoting(found.path, decision, protected)
            log(f"compared training rows with what is protected: {quoted.total()} quote {dict(quoted)}")
        kept = _write_splits(found, out, decision, dropped)
        lengths = found.characters()
        splits, reasons = (np.frombuffer(column, np.uint8) for column in (decision.split, decision.reason))
        sizes = {name: lengths[(splits == n) & (reasons == KEPT)] for n, name in enumerate(SPLITS)}
    if not sum(kept.values()):
        raise _nothing_kept(found.ingested, dropped)
    refuse_bad_splits(kept, split)
    report = {
        "ingested": found.ingested,
        "kept": sum(kept.values()),
        "dropped": dict(sorted(dropped.counts.items())),
        "splits": kept,
        "pii": dict(sorted(found.scrubbed.items())),
        "contaminated_by": dict(quoted),
        "characters": {name: _percentiles(sizes[name]) for name in SPLITS if kept[name]},
    }
    (out / REPORT).write_text(json.dumps(report, indent=1))
    return report


def _drop_quoting(candidates: Path, decision: Decision, protected: ProtectedRuns) -> Counter[str]:
    """Drop training rows that quote what is protected; returns how many rows quote each source."""
    if protected.config.held_out:
        protected.protect("held-out rows", _held_out_texts(candidates, decision))
        protected.seal()
    trains = (np.frombuffer(decision.reason, np.uint8) == KEPT) & (np.frombuffer(decision.split, np.uint8) == TRAIN)
    suspects = np.zeros(len(trains), bool)
    for rows, texts in _texts_of(candidates, trains):
        found = protected.count(texts, [bool(decision.asks_first[row]) for row in rows])
        suspects[[rows[place] for place in found]] = True
    quoted = Counter[str]()
    for rows, texts in _texts_of(candidates, suspects):
        for row, verdict in zip(rows, protected.judge(texts), strict=True):
            if verdict:
                source, decision.quoted[row] = verdict
                decision.reason[row] = QUOTES
                quoted[source] += 1
    return quoted


def _texts_of(candidates: Path, wanted: np.ndarray) -> Iterator[tuple[list[int], list[list[str]]]]:
    """Numbers of the wanted rows, bool of shape `(rows,)`, and what is said in each, batch by batch."""
    start = 0
    for batch in batches(candidates, ["messages"]):
        places = np.flatnonzero(wanted[start : start + batch.num_rows])
        if len(places):
            conversations = messages_of(batch.take(pa.array(places)))
            texts = [[turn["content"] for turn in messages if turn["role"] != "system"] for messages in conversations]
            yield (start + places).tolist(), texts
        start += batch.num_rows


def _held_out_texts(candidates: Path, decision: Decision) -> Iterator[str]:
    held_out = (np.frombuffer(decision.reason, np.uint8) == KEPT) & (np.frombuffer(decision.split, np.uint8) != TRAIN)
    for _, conversations in _texts_of(candidates, held_out):
        yield from (text for texts in conversations for text in texts)


def _write_splits(found: Candidates, out: Path, decision: Decision, dropped: DroppedRows) -> dict[str, int]:
    """Second pass: each kept row to its split's file, in row order, and the others to the dropped rows."""
    splits, reasons = (np.frombuffer(column, np.uint8) for column in (decision.split, decision.reason))
    writers = [pq.ParquetWriter(out / f"{split}.parquet", CHAT, compression="zstd") for split in SPLITS]
    kept: dict[str, int] = dict.fromkeys(SPLITS, 0)
    start = 0
    for batch in batches(found.path):
        here = slice(start, start + batch.num_rows)
        for n, (name, writer) in enumerate(zip(SPLITS, writers, strict=True)):
            places = np.flatnonzero((splits[here] == n) & (reasons[here] == KEPT))
            if len(places):
                writer.write_batch(batch.select(CHAT.names).take(pa.array(places)).cast(CHAT))
                kept[name] += len(places)
        leaving = np.flatnonzero(reasons[here] != KEPT)
        gone = batch.take(pa.array(leaving))
        origins = zip(*(gone[name].to_pylist() for name in ("row_id", "source", "place")), strict=True)
        for row, origin, messages in zip((start + leaving).tolist(), origins, messages_of(gone), strict=True):
            reason, detail = REASONS[decision.reason[row]], decision.detail(row, found.row_ids)
            dropped.add(DroppedRow(*origin, reason=reason, detail=detail, excerpt=excerpt_of(messages)))
        start += batch.num_rows
    for writer in writers:
        writer.close()
    return kept


def _percentiles(sizes: np.ndarray) -> dict[str, int]:
    return {f"p{p}": int(np.percentile(sizes, p, method="nearest")) for p in PERCENTILES}


def _nothing_kept(ingested: int, dropped: DroppedRows) -> NoConversationKept:
    reasons, first = dict(sorted(dropped.counts.items())), ""
    if row := dropped.first:
        first = f" First: row {row.row_id} of {row.place or row.source}, {row.reason}: {row.detail}."
    return NoConversationKept(
        f"None of {ingested} rows became a conversation: {reasons}.{first} Correct the format or the curation."
    )
