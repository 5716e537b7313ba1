"""Which conversations are kept: every row either stays or leaves with one counted reason.

Rows are judged one by one as they stream by (`judge`), then against one another (`repeated`). Held-out rows win
over training rows that repeat them, so what a model is measured on is never what it learned.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
from pydantic import Field

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.formats import FormatConfig, conversation
from llm_assets.data.messages import Conversation, RowRefused, check_turns
from llm_assets.data.similarity import NearDuplicates, ngrams
from llm_assets.data.spilling import bounded_connection

HELD_OUT_FIRST = "CASE split WHEN 'test' THEN 0 WHEN 'validation' THEN 1 ELSE 2 END"
PASSES = "passes_where"


class PredicateInvalid(LLMAssetsError):
    """`curation.where` is no predicate over the source columns."""


class CurationConfig(Config):
    """What is dropped, and how much may be."""

    where: str | None = Field(
        default=None, description="DuckDB predicate over the source columns that a row must meet, e.g. `score > 3`."
    )
    max_chars: int | None = Field(
        default=None, ge=1, description="Longest conversation in characters; no limit by default."
    )
    near_duplicate_similarity: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Drop rows at least this alike (Jaccard of 3-word shingles); off by default.",
    )
    contamination_ngram_words: int | None = Field(
        default=None,
        ge=3,
        description="Compare training with held-out rows by runs of this many words; off by default.",
    )
    contamination_share: float = Field(
        default=0.5, gt=0, le=1, description="Drop a training row when this share of its runs occurs in held-out rows."
    )
    max_drop_share: float = Field(
        default=0.5, ge=0, le=1, description="Check drop_share fails above this share of rows."
    )
    leakage_similarity: float = Field(
        default=0.9, gt=0, le=1, description="Check no_split_leakage counts held-out rows this alike to a training row."
    )
    max_leakage_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Check no_split_leakage fails above this share of near-duplicate held-out rows.",
    )


def source_rows(raw: Path, config: CurationConfig, batch_rows: int = 2048) -> Iterator[list[dict[str, Any]]]:
    """Yield the raw rows in order, each with the extra boolean `passes_where`.

    Raises:
        PredicateInvalid: DuckDB does not take `where`; says why.
    """
    predicate = f"coalesce(CAST(({config.where}) AS BOOLEAN), false)" if config.where else "true"
    with duckdb.connect(config={"python_enable_replacements": False}) as connection:
        source = str(raw).replace("'", "''")
        try:
            reader = connection.sql(f"SELECT *, {predicate} AS {PASSES} FROM read_parquet('{source}')").to_arrow_reader(
                batch_rows
            )
            for batch in reader:
                yield batch.to_pylist()
        except duckdb.Error as error:
            if not config.where:
                raise
            raise PredicateInvalid(
                f"curation.where '{config.where}': {str(error).split(chr(10))[0]}. Correct it; it sees the columns of "
                "the source."
            ) from error


def judge(row: Mapping[str, Any], format: FormatConfig, config: CurationConfig) -> Conversation:
    """Read one row as a conversation, judged on its own.

    Raises:
        RowRefused: `where`, `bad_roles`, `empty_turn`, `too_long_chars`, or a cell that does not parse.
    """
    if not row[PASSES]:
        raise RowRefused("where", f"not {config.where}")
    found = conversation(row, format)
    check_turns(found.messages)
    characters = sum(len(turn["content"]) + len(turn["tool_calls"] or "") for turn in found.messages)
    if config.max_chars and characters > config.max_chars:
        raise RowRefused("too_long_chars", f"{characters} characters, at most {config.max_chars}")
    return found


def repeated(
    candidates: Path, config: CurationConfig, log: Callable[[str], None] = print
) -> dict[int, tuple[str, str]]:
    """Judge the candidates against one another.

    Args:
        candidates: Parquet with row_id, split, content (normalised), content_key and prompt_key, in row order.
        config: Thresholds; near duplicates and n-grams are compared only when set.
        log: Told about the slow comparisons.

    Returns:
        `(reason, detail)` by row number of each candidate to drop: `duplicate`, `contaminated` or `near_duplicate`.
    """
    verdicts = _same_prompt_held_out(candidates) | _same_content(candidates)
    if config.contamination_ngram_words:
        verdicts |= _shared_ngrams(candidates, verdicts, config.contamination_ngram_words, config.contamination_share)
        log(f"compared word runs with the held-out rows: {len(verdicts)} rows to drop so far")
    if config.near_duplicate_similarity:
        verdicts |= _near_duplicates(candidates, verdicts, config.near_duplicate_similarity, log)
    return verdicts


def _same_content(candidates: Path) -> dict[int, tuple[str, str]]:
    """All but the first of equal conversations; a held-out one counts as first."""
    query = f"""
        SELECT n, first FROM (
            SELECT file_row_number AS n, row_number() OVER same AS rank, first_value(row_id) OVER same AS first
            FROM read_parquet(?, file_row_number=true)
            WINDOW same AS (PARTITION BY content_key ORDER BY {HELD_OUT_FIRST}, file_row_number)
        ) WHERE rank > 1"""
    return {n: ("duplicate", f"of {first}") for n, first in _fetch(query, candidates)}


def _same_prompt_held_out(candidates: Path) -> dict[int, tuple[str, str]]:
    """Rows whose prompt a more protected split asks as well: train below validation below test."""
    query = f"""
        SELECT n, first FROM (
            SELECT file_row_number AS n, {HELD_OUT_FIRST} AS place,
                   first_value({HELD_OUT_FIRST}) OVER asked AS best, first_value(row_id) OVER asked AS first
            FROM read_parquet(?, file_row_number=true)
            WINDOW asked AS (PARTITION BY prompt_key ORDER BY {HELD_OUT_FIRST}, file_row_number)
        ) WHERE place > best"""
    return {n: ("contaminated", f"asks what held-out row {first} asks") for n, first in _fetch(query, candidates)}


def _shared_ngrams(
    candidates: Path, dropped: Mapping[int, Any], words: int, share: float
) -> dict[int, tuple[str, str]]:
    held_out: set[int] = set()
    for _, row in _rows(candidates):
        if row["split"] != "train":
            held_out |= ngrams(row["content"], words)
    verdicts = {}
    for n, row in _rows(candidates):
        if row["split"] == "train" and n not in dropped:
            runs = ngrams(row["content"], words)
            found = len(runs & held_out) / len(runs)
            if found >= share:
                verdicts[n] = ("contaminated", f"{found:.0%} of its {words}-word runs are in held-out rows")
    return verdicts


def _near_duplicates(
    candidates: Path, dropped: Mapping[int, Any], similarity: float, log: Callable[[str], None]
) -> dict[int, tuple[str, str]]:
    """Later rows that nearly repeat an earlier one; held-out rows enter the index first."""
    index, verdicts, seen = NearDuplicates(similarity), {}, 0
    for split in ("test", "validation", "train"):
        for n, row in _rows(candidates):
            if row["split"] == split and n not in dropped:
                like = index.add_unless_like(row["row_id"], row["content"])
                if like:
                    verdicts[n] = ("near_duplicate", f"at least {similarity:.0%} like {like}")
                seen += 1
                if seen % 20_000 == 0:
                    log(f"near duplicates: {seen} rows compared, {len(verdicts)} found")
    return verdicts


def _rows(candidates: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    n = 0
    for batch in pq.ParquetFile(candidates).iter_batches(2048, columns=["row_id", "split", "content"]):
        for row in batch.to_pylist():
            yield n, row
            n += 1


def _fetch(query: str, candidates: Path) -> list[tuple[int, str]]:
    with bounded_connection(beside=candidates) as connection:
        return connection.execute(query, [str(candidates)]).fetchall()


def dropped_by_reason(dropped: Path, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """One line per reason of a `dropped.parquet`: how many rows it cost, and the first of them."""
    table = pq.read_table(dropped)
    lines = []
    for reason, rows in counts.items():
        first = table.slice(table["reason"].index(reason).as_py(), 1).to_pylist()[0]
        lines.append({"reason": reason, "rows": rows, "first_row": first["row_id"], "detail": first["detail"]})
    return lines
