"""Raw rows of about 240 tokens to packed token ids: against `datasets.map`, against the clock, and against memory.

The anchor reads the same rows and must write the same ids and labels; the benchmark ends if it does not. It neither
ingests, curates, splits nor packs, all of which ours does in the time that is compared.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._data_child import raw_to_packs, tokenize
from benchmarks._harness import Row, cpu_seconds, interleaved, main
from llm_assets.data.splits import SPLITS
from llm_assets.data.token_files import IGNORED, TokenFile
from llm_assets.demo.base_model import dialogue
from llm_assets.demo.base_tokenizer import train_tokenizer
from llm_assets.demo.rows import training_rows

ANCHOR = "`datasets.map` with `apply_chat_template(return_assistant_tokens_mask=True)`"
POOL_ROWS, SCHEMAS_PER_ROW, WRITTEN_ROWS = 10_000, 5, 20_000
RAW = pa.schema([("prompt", pa.string()), ("completion", pa.string())])
Sides = dict[str, Callable[[], dict[str, float]]]


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Speed against the anchor, then scale in processes of their own, then one percent of new rows."""
    import datasets
    import transformers  # noqa: F401 - imported here so that the first round does not pay for it

    datasets.disable_progress_bars()
    base = write_tokenizer(scratch / "base")
    found = _against_anchor(scratch / "speed", base, rows=2_000 if quick else 20_000, rounds=1 if quick else 5)
    sizes = (1_000, 4_000) if quick else (100_000, 1_000_000)
    found += _scale(scratch / "scale", base, sizes)
    return found + _one_percent_new(scratch / "scale" / str(sizes[0]), base, rounds=1 if quick else 3)


def _against_anchor(scratch: Path, base: Path, rows: int, rounds: int) -> list[Row]:
    raw = write_rows(scratch / "rows.parquet", rows)
    runs = {"ours": 0, ANCHOR: 0}

    def timed(name: str, work: Callable[[Path], Any]) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            runs[name] += 1
            out = scratch / f"{list(runs).index(name)}_{runs[name]}"
            began = cpu_seconds()
            spent = work(out)
            whole = cpu_seconds() - began
            tokenizing = spent["tokenize"] if spent else whole
            return {"rows_per_cpu_second": rows / whole, "tokenized_per_cpu_second": rows / tokenizing}

        return run

    sides: Sides = {
        "ours": timed("ours", lambda out: raw_to_packs(raw, base, out)),
        ANCHOR: timed(ANCHOR, lambda out: with_datasets(raw, base, out)),
    }
    found = interleaved(sides, rounds)
    require_equal(scratch / "0_1" / "tokenized_dataset", scratch / "1_1" / "rows.parquet")
    whole, tokens = ("rows_per_cpu_second", "tokenized_per_cpu_second")
    return [
        Row("Raw rows to packs", found["ours"][whole], found[ANCHOR][whole], ANCHOR, "rows/CPU s", "higher", 2.0),
        Row(
            "Conversations to tokens", found["ours"][tokens], found[ANCHOR][tokens], ANCHOR, "rows/CPU s", "higher", 2.0
        ),
    ]


def with_datasets(raw: Path, base: Path, out: Path) -> None:
    """Row by row, as the documentation of transformers shows it, with no cache from an earlier round."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        made = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = made["input_ids"], made["assistant_masks"]
        return {"input_ids": ids, "labels": [id if kept else IGNORED for id, kept in zip(ids, mask, strict=True)]}

    read = Dataset.from_parquet(str(raw), cache_dir=str(out / "cache"))
    read.map(encode, remove_columns=read.column_names, load_from_cache_file=False).to_parquet(str(out / "rows.parquet"))


def require_equal(ours: Path, theirs: Path) -> None:
    """Refuse to compare the speed of different results, in whatever order their rows are."""
    left = [
        (file.ids(row).tolist(), file.labels(row).tolist())
        for file in (TokenFile(ours, split) for split in SPLITS)
        for row in range(len(file))
    ]
    right = [(row["input_ids"], row["labels"]) for row in pq.read_table(theirs).to_pylist()]
    if sorted(left) != sorted(right):
        raise SystemExit(
            f"The sides wrote different ids or labels ({len(left)} and {len(right)} rows): their speed says nothing."
        )


def _scale(scratch: Path, base: Path, sizes: tuple[int, int]) -> list[Row]:
    """Each stage in a process of its own, as its asset has one; near-duplicates included."""
    small, large = (_in_children(scratch / str(size), base, size) for size in sizes)
    bounds = {"tokenize": 30.0 * sizes[0] / 100_000, "small": 400.0, "large": 600.0}
    cpu = {name: sum(spent[stage] for stage in STAGES) for name, spent in (("small", small), ("large", large))}
    names = [f"{size:,} rows" for size in sizes]
    stated = "the bound that is asked for"
    stages = "Raw rows to packs, near-duplicates too"
    return [
        Row(f"Tokenizing and packing {names[0]}", small["tokenize"], bounds["tokenize"], stated, "CPU s", "lower", 1.0),
        Row(
            f"{stages}: {names[1]} for {names[0]}",
            cpu["large"],
            cpu["small"],
            names[0],
            "CPU s",
            "lower",
            1.1 * sizes[1] / sizes[0],
        ),
        Row(f"{stages}: memory, {names[0]}", small["peak_mb"], bounds["small"], stated, "MB", "lower", 1.0),
        Row(f"{stages}: memory, {names[1]}", large["peak_mb"], bounds["large"], stated, "MB", "lower", 1.0),
    ]


STAGES = ("ingest", "curate", "tokenize")


def _in_children(scratch: Path, base: Path, rows: int) -> dict[str, float]:
    raw = write_rows(scratch / "rows.parquet", rows)
    spent, peaks = {}, {}
    for stage in STAGES:
        job = {"raw": str(raw), "base": str(base), "out": str(scratch), "near_duplicates": True, "stage": stage}
        (scratch / "job.json").write_text(json.dumps(job))
        command = [sys.executable, "-m", "benchmarks._data_child", str(scratch / "job.json")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        spent[stage], peaks[stage] = told[stage], told["peak_mb"]
        print(f"{rows:,} rows: {stage} {spent[stage]:.1f} CPU s, {peaks[stage]:.0f} MB", flush=True)
    return {**spent, "peak_mb": max(peaks.values())}


def _one_percent_new(scratch: Path, base: Path, rounds: int) -> list[Row]:
    """A chat dataset of which the published tokens lack every hundredth row, against tokenizing all of it."""
    chat, older = scratch / "chat_dataset", scratch / "older_chat"
    older.mkdir()
    for split in SPLITS:
        table = pq.read_table(chat / f"{split}.parquet")
        pq.write_table(table.filter(pa.array(np.arange(table.num_rows) % 100 != 0)), older / f"{split}.parquet")
    published, every = scratch / "published", os.cpu_count() or 1
    tokenize(older, base, published)

    def timed(name: str, **how: Any) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            shutil.rmtree(scratch / name, ignore_errors=True)
            began, at = cpu_seconds(), time.perf_counter()
            tokenize(chat, base, scratch / name, **how)
            return {"cpu_seconds": cpu_seconds() - began, "seconds": time.perf_counter() - at}

        return run

    sides = {"new": timed("new", published=published), "full": timed("full"), "all": timed("all", processes=every)}
    found = interleaved(sides, rounds)
    for name in ("new", "all"):
        different = [p.name for p in (scratch / "full").rglob("*.*") if not _same(p, scratch / "full", scratch / name)]
        if different:
            raise SystemExit(f"{name} wrote other bytes than a full rebuild: {different}.")
    new, full, cores = found["new"], found["full"], found["all"]
    again = "tokenizing all rows; same bytes"
    return [
        Row(
            "Tokenizing again with 1 % new rows", new["cpu_seconds"], full["cpu_seconds"], again, "CPU s", "lower", 0.1
        ),
        Row(f"Tokenizing with {every} processes", cores["seconds"], full["seconds"], "one process", "s", "lower", 0.75),
    ]


def _same(path: Path, one: Path, other: Path) -> bool:
    return path.read_bytes() == (other / path.relative_to(one)).read_bytes()


def write_rows(path: Path, rows: int) -> Path:
    """Prompts and completions of about 240 tokens: a question of the demo below its tables and those of four others."""
    asked = training_rows(0, POOL_ROWS).select(["sql_prompt", "sql_context", "sql"]).to_pylist()
    pool = [row for row in asked if row["sql_prompt"].strip() and row["sql"].strip()]
    tables = [row["sql_context"].split("INSERT")[0].strip() for row in pool]
    draw = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, RAW) as writer:
        for first in range(0, rows, WRITTEN_ROWS):
            written = []
            for number in range(first, min(rows, first + WRITTEN_ROWS)):
                own = number % len(pool)
                shown = [tables[own], *(tables[n] for n in draw.integers(0, len(pool), SCHEMAS_PER_ROW - 1))]
                prompt = "\n".join([*shown, "", f"{pool[own]['sql_prompt']} (request {number})"])
                written.append({"prompt": prompt, "completion": pool[own]["sql"]})
            writer.write_table(pa.Table.from_pylist(written, RAW))
    return path


def write_tokenizer(base: Path) -> Path:
    """The demo's tokenizer and template, without a model."""
    train_tokenizer(text for index in range(4000) for text in dialogue(index, 0)).save_pretrained(base)
    return base


if __name__ == "__main__":
    main("data", measure)
