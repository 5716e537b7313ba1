"""Conversations become the token ids, spans and packs that training reads, streamed batch by batch.

Memory holds a batch at a time, whatever the dataset's size. Rows unchanged since the published dataset keep its tokens;
the others are encoded here, or by as many processes as are given. The files come out the same either way.
"""

import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import DATE_STRING
from llm_assets.data.packing import pack_best_fit, packing_efficiency, shuffle_packs, write_packs
from llm_assets.data.rendering import Conversation, Renderer
from llm_assets.data.splits import SPLITS
from llm_assets.data.token_config import TokenizationConfig
from llm_assets.data.token_files import TokenColumns, TokenFile, TokenWriter, token_schema
from llm_assets.data.token_reuse import ABSENT, EarlierTokens, conversation_digests
from llm_assets.data.token_statistics import dataset_statistics, dropped_statistics
from llm_assets.data.tokenizer_files import copy_tokenizer, rendering_digest
from llm_assets.data.truncation import TOO_LONG, Fitted, Fitter, Refused, refuse_too_long

BATCH_ROWS = 1024
DROPPED = pa.schema([(name, pa.string()) for name in ("row_id", "split", "reason", "detail")])
Fit = Callable[[Sequence[Conversation]], "Callable[[], list[Fitted | Refused]]"]


class NothingTokenized(LLMAssetsError):
    """No training row could be rendered, or none fits."""


@dataclass
class _Progress:
    """What is known so far of a dataset being made."""

    log: Callable[[str], None]
    dropped: list[dict[str, str]] = field(default_factory=list)
    reused_rows: int = 0


def tokenize_dataset(
    chat: Path,
    base: Path,
    out: Path,
    config: TokenizationConfig,
    log: Callable[[str], None] = print,
    published: Path | None = None,
) -> dict[str, Any]:
    """Write splits, packs, `tokenizer/`, `dropped.parquet` and `statistics.json` to `out`; returns the statistics.

    Args:
        chat: A chat dataset.
        base: Hugging Face directory whose tokenizer and template are used.
        out: An empty directory.
        config: Lengths, template and supervision.
        log: Told about the progress.
        published: An earlier result, whose unchanged rows need no tokenizing; the files written are the same.

    Returns:
        The contents of `statistics.json`, which depend on the inputs alone.

    Raises:
        TokenizerMissing, TemplateMissing, TemplateInvalid, TemplateUnsupported: the base does not render chats.
        TokensMissing: the template or `pad_token` names tokens that the tokenizer lacks.
        RowsTooLong: a row exceeds the limit and `too_long` is refuse.
        NothingTokenized: no training row is left; gives the reasons.
    """
    copy_tokenizer(base, out / "tokenizer", config)
    renderer = Renderer.from_directory(out / "tokenizer")
    rendering = rendering_digest(out / "tokenizer", config)
    earlier, progress = EarlierTokens.read(published, rendering), _Progress(log)
    schema = token_schema(renderer.tokenizer.get_vocab_size())
    with ExitStack() as stack:
        fit = _fitting(renderer, out / "tokenizer", config, stack)
        for split in SPLITS:
            with TokenWriter(out, split, schema) as writer:
                _write_split(chat / f"{split}.parquet", split, writer, fit, earlier, progress, config)
    pq.write_table(pa.Table.from_pylist(progress.dropped, DROPPED), out / "dropped.parquet", compression="zstd")
    lengths = TokenFile(out, "train").lengths
    if not len(lengths):
        reasons = dict(Counter(row["reason"] for row in progress.dropped))
        example = progress.dropped[0]["detail"] if progress.dropped else "the chat dataset has no training row"
        raise NothingTokenized(f"No training row is left: {reasons}. For example: {example}.")
    packs = shuffle_packs(pack_best_fit(lengths, config.capacity_tokens), config.seed)
    write_packs(out, packs, lengths)
    statistics = {
        **dataset_statistics(out, progress.dropped),
        **dropped_statistics(progress.dropped),
        "packs": len(packs),
        "packing_efficiency": packing_efficiency(lengths, packs, config.capacity_tokens),
        "max_length_tokens": config.max_length_tokens,
        "pack_length_tokens": config.capacity_tokens,
        "supervise": config.supervise,
        "template_sha256": hashlib.sha256((out / "tokenizer" / "chat_template.jinja").read_bytes()).hexdigest(),
        "rendering_sha256": rendering,
        "date_string": DATE_STRING,
        "end_of_turn_ids": list(renderer.end_of_turn_ids),
        "end_of_turn_tokens": list(renderer.end_of_turn_tokens),
    }
    (out / "statistics.json").write_text(json.dumps(statistics, indent=1))
    if earlier:
        log(f"{progress.reused_rows} rows keep the tokens they were published with.")
    return statistics


def _write_split(
    path: Path,
    split: str,
    writer: TokenWriter,
    fit: Fit,
    earlier: EarlierTokens | None,
    progress: _Progress,
    config: TokenizationConfig,
) -> None:
    file = pq.ParquetFile(path)
    read, total = 0, file.metadata.num_rows
    for batch in _batches(file, fit, earlier, 2 * config.processes):
        new = batch.waiting()
        refused = {n: row for n, row in zip(batch.new, new, strict=True) if isinstance(row, Refused)}
        for n, row in refused.items():
            if row.reason == TOO_LONG and config.too_long == "refuse":
                refuse_too_long(batch.row_ids[n], split, row)
            reason = {"reason": row.reason, "detail": row.detail}
            progress.dropped.append({"row_id": batch.row_ids[n], "split": split, **reason})
        kept = [n for n in range(len(batch.row_ids)) if n not in refused] if refused else range(len(batch.row_ids))
        pieces = list(_pieces(batch, new, earlier))
        writer.write([batch.row_ids[n] for n in kept], [batch.digests[n] for n in kept], pieces)
        progress.reused_rows += len(batch.row_ids) - len(batch.new)
        if read * 10 // total != (read + len(batch.row_ids)) * 10 // total:
            progress.log(f"{split}: {read + len(batch.row_ids)} of {total} rows")
        read += len(batch.row_ids)


@dataclass(frozen=True)
class _Batch:
    """Rows of a chat dataset: where each was published, which are new, and how to get the tokens of those."""

    row_ids: list[str]
    digests: list[bytes]
    places: np.ndarray
    new: list[int]
    waiting: Callable[[], list[Fitted | Refused]]


def _batches(file: pq.ParquetFile, fit: Fit, earlier: EarlierTokens | None, ahead: int) -> Iterator[_Batch]:
    """Batches in file order, up to `ahead` of them under way."""
    under_way: deque[_Batch] = deque()
    for batch in file.iter_batches(BATCH_ROWS, columns=["row_id", "messages", "tools"], use_threads=False):
        digests = conversation_digests(batch)
        places = earlier.find(digests) if earlier else np.full(len(digests), ABSENT)
        new = np.flatnonzero(places == ABSENT)
        unknown = batch.select(["messages", "tools"])
        listed = (unknown.take(pa.array(new)) if earlier else unknown).to_pylist() if len(new) else []
        waiting = fit([(row["messages"], row["tools"]) for row in listed])
        under_way.append(_Batch(batch["row_id"].to_pylist(), digests, places, new.tolist(), waiting))
        if len(under_way) >= ahead:
            yield under_way.popleft()
    yield from under_way


def _pieces(batch: _Batch, new: list[Fitted | Refused], earlier: EarlierTokens | None) -> Iterator[TokenColumns]:
    """Columns of a batch's rows in order: published ones as they lie, new ones as they were encoded."""
    waiting = iter(new)
    for first, last in earlier.runs(batch.places) if earlier else [(0, len(batch.places))]:
        place = int(batch.places[first])
        if earlier and place != ABSENT:
            yield earlier.rows(place, last - first)
        else:
            yield _columns([row for row in islice(waiting, last - first) if isinstance(row, Fitted)])


def _columns(rows: list[Fitted]) -> TokenColumns:
    encoded = [row.encoded for row in rows]
    spans = np.array([place for row in encoded for span in row.spans for place in span], np.int32)
    counts = {
        "prompt_tokens": [row.prompt_tokens for row in encoded],
        "supervised_tokens": [row.supervised_tokens for row in encoded],
        "cut_messages": [row.cut_messages for row in rows],
        "characters": [row.characters for row in encoded],
    }
    return TokenColumns(
        ids=np.fromiter(chain.from_iterable(row.input_ids for row in encoded), np.int32),
        lengths=np.array([len(row.input_ids) for row in encoded], np.int64),
        spans=spans,
        span_lengths=np.array([2 * len(row.spans) for row in encoded], np.int64),
        numbers={name: np.array(values, np.int32) for name, values in counts.items()},
    )


def _fitting(renderer: Renderer, tokenizer: Path, config: TokenizationConfig, stack: ExitStack) -> Fit:
    """What encodes a batch: this process when its result is asked for, or another at once."""
    if config.processes == 1:
        fitter = Fitter(renderer, config)
        return lambda rows: partial(fitter.fit_batch, rows)
    pool = stack.enter_context(
        ProcessPoolExecutor(
            config.processes, mp_context=get_context("spawn"), initializer=_open_fitter, initargs=(tokenizer, config)
        )
    )
    return lambda rows: pool.submit(_fit_in_process, rows).result


_fitter_of_process: list[Fitter] = []


def _open_fitter(tokenizer: Path, config: TokenizationConfig) -> None:
    _fitter_of_process.append(Fitter(Renderer.from_directory(tokenizer), config))


def _fit_in_process(rows: Sequence[Conversation]) -> list[Fitted | Refused]:
    return _fitter_of_process[0].fit_batch(rows)
