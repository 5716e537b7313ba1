"""A tokenized dataset made by hand, small enough that a training run takes seconds.

`from tokenized_by_hand import ...` works in every test, because `tests/` is where the root conftest lives.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.data.token_files import write_rows

COLUMNS = ["number", "name", "city", "total"]
TABLES = ["orders", "people", "towns"]


def conversations(count: int, seed: int) -> list[tuple[str, str]]:
    """Questions and answers a two-layer model can learn in a few steps."""
    draw = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        column, table, number = draw.choice(COLUMNS), draw.choice(TABLES), draw.integers(0, 10)
        pairs.append((f"{column} of {table} {number}?", f"SELECT {column} FROM {table} WHERE id = {number};"))
    return pairs


def write_dataset(base: Path, directory: Path, train: int = 64, held_out: int = 16, seed: int = 0) -> Path:
    """Write a tokenized dataset of packs of up to 256 tokens, with the base's own tokenizer and template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    for offset, (split, count) in enumerate([("train", train), ("validation", held_out), ("test", held_out)]):
        rows = []
        for index, (question, answer) in enumerate(conversations(count, seed + offset)):
            user = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(user, add_generation_prompt=True, tokenize=False)
            prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
            answer_ids = tokenizer(answer + "<|im_end|>", add_special_tokens=False).input_ids
            rows.append(
                {
                    "row_id": f"{split}-{index}",
                    "input_ids": prompt_ids + answer_ids,
                    "labels": [-100] * len(prompt_ids) + answer_ids,
                    "prompt_tokens": len(prompt_ids),
                    "supervised_tokens": len(answer_ids),
                }
            )
        directory.mkdir(parents=True, exist_ok=True)
        write_rows(directory, split, rows)
        if split == "train":
            write_packs(directory, [len(row["input_ids"]) for row in rows])
    tokenizer.save_pretrained(directory / "tokenizer")
    (directory / "statistics.json").write_text(json.dumps({"template_sha256": "0" * 64}))
    return directory


def write_packs(directory: Path, lengths: list[int], capacity: int = 256) -> None:
    """Fill packs in row order."""
    packs: list[list[int]] = [[]]
    for row, length in enumerate(lengths):
        if sum(lengths[i] for i in packs[-1]) + length > capacity:
            packs.append([])
        packs[-1].append(row)
    pq.write_table(pa.table({"rows": pa.array(packs, pa.list_(pa.int32()))}), directory / "packs.parquet")
