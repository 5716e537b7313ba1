"""Conversations become the token ids, labels and packs that training reads, streamed batch by batch to Parquet.

The tokenizer and the one chat template used are copied beside the tokens and travel with every model made from them.
A row longer than the limit is dropped whole and counted: a cut answer would teach the model not to stop.
"""

import hashlib
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.chat_template import CHATML, DATE_STRING, FILE
from llm_assets.data.messages import RowRefused
from llm_assets.data.packing import pack_best_fit, packing_efficiency, shuffle_packs
from llm_assets.data.rendering import Encoded, Renderer
from llm_assets.data.splits import SPLITS
from llm_assets.data.token_checks import TokenCheckConfig

BATCH_ROWS = 1024
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
INT_LIST = pa.list_(pa.int32())
TOKENS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("input_ids", INT_LIST, nullable=False),
        pa.field("labels", INT_LIST, nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("supervised_tokens", pa.int32(), nullable=False),
    ]
)
DROPPED = pa.schema([(name, pa.string()) for name in ("row_id", "split", "reason", "detail")])
TOO_LONG = "too_long"
PERCENTILES = (1, 10, 50, 90, 99)


class RowsTooLong(LLMAssetsError):
    """A row exceeds the length limit and `too_long` is refuse."""


class NothingTokenized(LLMAssetsError):
    """No training row could be rendered, or none fits."""


class TokensMissing(LLMAssetsError):
    """The tokenizer lacks a token that the configuration names."""


class TokenizationConfig(Config):
    """How conversations become tokens."""

    max_length_tokens: int = Field(
        default=2048, ge=8, description="Longest row; longer ones are dropped whole or refused."
    )
    pack_length_tokens: int | None = Field(
        default=None, ge=8, description="Tokens per pack of training rows; max_length_tokens when not given."
    )
    too_long: Literal["drop", "refuse"] = Field(default="drop", description="What becomes of longer rows.")
    supervise: Literal["all_turns", "last_turn"] = Field(
        default="all_turns", description="Whether every assistant turn carries loss, or the last alone."
    )
    template: str = Field(
        default="model", description="model (the base model's own), chatml, or the path of a Jinja chat template."
    )
    pad_token: str | None = Field(
        default=None, description="Existing token to pad with, where the tokenizer names none or its end-of-turn token."
    )
    seed: int = Field(default=0, description="Order of the packs.")
    checks: TokenCheckConfig = Field(default=TokenCheckConfig(), description="Bounds of the dataset's checks.")

    @model_validator(mode="after")
    def _packs_hold_rows(self) -> Self:
        if self.capacity_tokens < self.max_length_tokens:
            raise ValueError(
                f"pack_length_tokens {self.capacity_tokens} is below max_length_tokens {self.max_length_tokens}, so "
                "the longest rows fit no pack; raise the former or lower the latter"
            )
        return self

    @property
    def capacity_tokens(self) -> int:
        """Tokens per pack."""
        return self.pack_length_tokens or self.max_length_tokens


def tokenize_dataset(
    chat: Path, base: Path, out: Path, config: TokenizationConfig, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Write splits, packs, `tokenizer/`, `dropped.parquet` and `statistics.json` to `out`; returns the statistics.

    Args:
        chat: A chat dataset.
        base: Hugging Face directory whose tokenizer and template are used.
        out: An empty directory.
        config: Lengths, template and supervision.
        log: Told about the progress.

    Raises:
        TokenizerMissing, TemplateMissing, TemplateInvalid, TemplateUnsupported: the base does not render chats.
        TokensMissing: the template or `pad_token` names tokens that the tokenizer lacks.
        RowsTooLong: a row exceeds the limit and `too_long` is refuse.
        NothingTokenized: no training row is left; gives the reasons.
    """
    copy_tokenizer(base, out / "tokenizer", config)
    renderer = Renderer.from_directory(out / "tokenizer")
    dropped: list[dict[str, str]] = []
    lengths, supervised = {}, {}
    for split in SPLITS:
        lengths[split], supervised[split] = _write_split(chat, out, split, renderer, config, dropped=dropped, log=log)
    if not len(lengths["train"]):
        reasons = Counter(row["reason"] for row in dropped)
        example = dropped[0]["detail"] if dropped else "the chat dataset has no training row"
        raise NothingTokenized(f"No training row is left: {dict(reasons)}. For example: {example}.")
    packs = shuffle_packs(pack_best_fit(lengths["train"], config.capacity_tokens), config.seed)
    pq.write_table(pa.table({"rows": pa.array(packs, INT_LIST)}), out / "packs.parquet", compression="zstd")
    pq.write_table(pa.Table.from_pylist(dropped, DROPPED), out / "dropped.parquet", compression="zstd")
    statistics = _statistics(lengths, supervised, packs, dropped=dropped, renderer=renderer, config=config)
    (out / "statistics.json").write_text(json.dumps(statistics, indent=1))
    return statistics


def copy_tokenizer(base: Path, tokenizer: Path, config: TokenizationConfig) -> None:
    """Copy the tokenizer's files, and write the template beside them as the only one.

    With another template than the model's own, the template's end-of-turn token becomes the tokenizer's eos.
    """
    tokenizer.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, tokenizer / name)
    settings_path = tokenizer / "tokenizer_config.json"
    if config.template == "model":
        Renderer.from_directory(base)  # its refusals name the base
        if (base / FILE).exists():
            shutil.copyfile(base / FILE, tokenizer / FILE)
        else:
            (tokenizer / FILE).write_text(Renderer.from_directory(base).template.source)
    else:
        source = CHATML if config.template == "chatml" else Path(config.template).expanduser()
        if not source.is_file():
            raise TokensMissing(
                f"tokenization.template '{config.template}' is no file. Give model, chatml or the path of a template."
            )
        shutil.copyfile(source, tokenizer / FILE)
    settings = json.loads(settings_path.read_text()) if settings_path.exists() else {}
    settings.pop("chat_template", None)
    vocabulary = _added_tokens(tokenizer)
    if config.template == "chatml":
        _require_tokens(("<|im_start|>", "<|im_end|>"), vocabulary, "template: chatml")
    if config.pad_token:
        _require_tokens((config.pad_token,), vocabulary, "pad_token")
        settings["pad_token"] = config.pad_token
    settings_path.write_text(json.dumps(settings, indent=1, ensure_ascii=False))
    if config.template != "model":
        settings["eos_token"] = Renderer.from_directory(tokenizer).end_of_turn_tokens[0]
        settings_path.write_text(json.dumps(settings, indent=1, ensure_ascii=False))


def _added_tokens(tokenizer: Path) -> set[str]:
    stored = json.loads((tokenizer / "tokenizer.json").read_text()) if (tokenizer / "tokenizer.json").exists() else {}
    return {token["content"] for token in stored.get("added_tokens", ())}


def _require_tokens(tokens: tuple[str, ...], vocabulary: set[str], who: str) -> None:
    for token in tokens:
        if token not in vocabulary:
            raise TokensMissing(
                f"tokenization.{who} needs {token}, which is no added token of the base model's tokenizer. "
                "Use template: model, or a template and tokens that the model was trained with."
            )


def _write_split(
    chat: Path,
    out: Path,
    split: str,
    renderer: Renderer,
    config: TokenizationConfig,
    *,
    dropped: list[dict[str, str]],
    log: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Encode one split to its file; returns length and supervised tokens of the rows written, appends to `dropped`."""
    lengths, supervised = array("q"), array("q")
    file = pq.ParquetFile(chat / f"{split}.parquet")
    read, total = 0, file.metadata.num_rows
    with pq.ParquetWriter(out / f"{split}.parquet", TOKENS, compression="zstd") as writer:
        for batch in file.iter_batches(BATCH_ROWS, columns=["row_id", "messages", "tools"]):
            rows = batch.to_pylist()
            encoded = renderer.encode_batch([(row["messages"], row["tools"]) for row in rows], config.supervise)
            kept = list(_kept([row["row_id"] for row in rows], encoded, split, config, dropped))
            if kept:
                writer.write_batch(_record_batch(kept))
            lengths.extend(len(row.input_ids) for _, row in kept)
            supervised.extend(row.supervised_tokens for _, row in kept)
            if read * 10 // total != (read + len(rows)) * 10 // total:
                log(f"{split}: {read + len(rows)} of {total} rows tokenized, {sum(lengths)} tokens")
            read += len(rows)
    return np.asarray(lengths, np.int64), np.asarray(supervised, np.int64)


def _kept(
    row_ids: list[str],
    encoded: list[Encoded | RowRefused],
    split: str,
    config: TokenizationConfig,
    dropped: list[dict[str, str]],
) -> Iterator[tuple[str, Encoded]]:
    for row_id, row in zip(row_ids, encoded, strict=True):
        if isinstance(row, RowRefused):
            dropped.append({"row_id": row_id, "split": split, "reason": row.reason, "detail": row.detail})
        elif len(row.input_ids) > config.max_length_tokens:
            detail = f"{len(row.input_ids)} tokens, at most {config.max_length_tokens}"
            if config.too_long == "refuse":
                raise RowsTooLong(
                    f"Row {row_id} of {split} has {detail}. Raise tokenization.max_length_tokens, shorten the row, or "
                    "set tokenization.too_long to drop."
                )
            dropped.append({"row_id": row_id, "split": split, "reason": TOO_LONG, "detail": detail})
        else:
            yield row_id, row


def _record_batch(rows: list[tuple[str, Encoded]]) -> pa.RecordBatch:
    encoded = [row for _, row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row.input_ids) for row in encoded])]).astype(np.int32)
    return pa.record_batch(
        [
            pa.array([row_id for row_id, _ in rows], pa.string()),
            _lists([row.input_ids for row in encoded], offsets),
            _lists([row.labels for row in encoded], offsets),
            pa.array([row.prompt_tokens for row in encoded], pa.int32()),
            pa.array([row.supervised_tokens for row in encoded], pa.int32()),
        ],
        schema=TOKENS,
    )


def _lists(rows: list[list[int]], offsets: np.ndarray) -> pa.ListArray:
    flat = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(flat, pa.int32()))


def _statistics(
    lengths: dict[str, np.ndarray],
    supervised: dict[str, np.ndarray],
    packs: list[np.ndarray],
    *,
    dropped: list[dict[str, str]],
    renderer: Renderer,
    config: TokenizationConfig,
) -> dict[str, Any]:
    train, reasons = lengths["train"], Counter(row["reason"] for row in dropped)
    template = (renderer.template.source).encode()
    return {
        "rows": {split: len(lengths[split]) for split in SPLITS},
        "tokens": int(train.sum()),
        "supervised_tokens": int(supervised["train"].sum()),
        "supervised_share": float(supervised["train"].sum() / train.sum()),
        "mean_length_tokens": float(train.mean()),
        "longest_row_tokens": int(train.max()),
        "percentiles": {f"p{p}": float(np.percentile(train, p)) for p in PERCENTILES},
        "histogram": _histogram(train),
        "packs": len(packs),
        "packing_efficiency": packing_efficiency(train, packs, config.capacity_tokens),
        "max_length_tokens": config.max_length_tokens,
        "pack_length_tokens": config.capacity_tokens,
        "dropped": dict(sorted(reasons.items())),
        "dropped_too_long": reasons[TOO_LONG],
        "supervise": config.supervise,
        "template_sha256": hashlib.sha256(template).hexdigest(),
        "date_string": DATE_STRING,
        "end_of_turn_ids": list(renderer.end_of_turn_ids),
        "end_of_turn_tokens": list(renderer.end_of_turn_tokens),
    }


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """At most 40 bins of equal width in whole tokens: their left edges, and the rows in each."""
    width = int(lengths.max()) // 40 + 1
    counts = np.bincount(lengths // width)
    return {"edges": [n * width for n in range(len(counts))], "rows": counts.tolist()}
