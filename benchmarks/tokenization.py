"""Conversations to token ids, answer-only labels and Parquet: ours, against `datasets.map` with the template's mask.

Both sides read the same chat dataset and must write the same ids and labels; the benchmark ends if they do not.
"""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks._demo import write_chat_dataset, write_random_base
from benchmarks._harness import Row, cpu_seconds, interleaved, main
from llm_assets.data import TokenizationConfig
from llm_assets.data.rendering import IGNORED
from llm_assets.data.splits import SPLITS
from llm_assets.data.tokenization import tokenize_dataset

ANCHOR = "`datasets.map` with `apply_chat_template(return_assistant_tokens_mask=True)`"
COLUMNS = ["row_id", "input_ids", "labels"]


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Rows per CPU second, over all three splits."""
    import datasets
    import transformers  # noqa: F401 - imported here so that the first round does not pay for it

    datasets.disable_progress_bars()
    chat, base = write_chat_dataset(scratch, 1_500 if quick else 9_000), write_random_base(scratch)
    rows = sum(pq.read_metadata(chat / f"{split}.parquet").num_rows for split in SPLITS)
    runs = {"ours": 0, ANCHOR: 0}

    def timed(name: str, tokenize: Any) -> dict[str, float]:
        runs[name] += 1
        out = scratch / f"{list(runs).index(name)}_{runs[name]}"
        out.mkdir()
        began = cpu_seconds()
        tokenize(chat, base, out)
        return {"rows_per_cpu_second": rows / (cpu_seconds() - began)}

    sides = {"ours": lambda: timed("ours", with_ours), ANCHOR: lambda: timed(ANCHOR, with_datasets)}
    found = interleaved(sides, rounds=1 if quick else 5)
    require_equal(scratch / "0_1", scratch / "1_1")
    ours, theirs = (found[name]["rows_per_cpu_second"] for name in ("ours", ANCHOR))
    return [Row("Tokenization: rows to ids, labels, Parquet", ours, theirs, ANCHOR, "rows/CPU s", "higher", 1.3)]


def with_ours(chat: Path, base: Path, out: Path) -> None:
    """The asset's own function; packs and statistics included."""
    tokenize_dataset(chat, base, out, TokenizationConfig(max_length_tokens=1024), log=lambda _: None)


def with_datasets(chat: Path, base: Path, out: Path) -> None:
    """Row by row, as the documentation of transformers shows it, with no cache from an earlier round."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        made = tokenizer.apply_chat_template(row["messages"], return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = made["input_ids"], made["assistant_masks"]
        return {"input_ids": ids, "labels": [id if kept else IGNORED for id, kept in zip(ids, mask, strict=True)]}

    for split in SPLITS:
        read = Dataset.from_parquet(str(chat / f"{split}.parquet"), cache_dir=str(out / "cache"))
        encoded = read.map(encode, remove_columns=["messages", "tools", "extras"], load_from_cache_file=False)
        encoded.to_parquet(str(out / f"{split}.parquet"))


def require_equal(ours: Path, theirs: Path) -> None:
    """Refuse to compare the speed of different results."""
    for split in SPLITS:
        left, right = (pq.read_table(side / f"{split}.parquet", columns=COLUMNS).to_pylist() for side in (ours, theirs))
        if left != right:
            raise SystemExit(f"The two sides wrote different ids or labels for {split}: their speed says nothing.")


if __name__ == "__main__":
    main("tokenization", measure)
