"""A tiny model that really learned something, its tokenized dataset, and its variants: each made once per session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_assets.data.token_files import read_tokens, write_rows
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.quantize import quantize

NAMES = ("Rosa", "Ivo", "Mina", "Otto")
COLUMNS = ("total", "id", "customer")
STEPS = 100


def conversations() -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"which {column} has {name}{' please' * repeats}?"},
            {"role": "assistant", "content": f"SELECT {column} FROM orders WHERE customer = '{name}';"},
        ]
        for name in NAMES
        for column in COLUMNS
        for repeats in (0, 2)
    ]


@pytest.fixture(scope="session")
def tokenized(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and validation hold the same questions: these tests measure quantization, not generalization."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def ids(messages: list[dict[str, str]], prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"]

    rows = []
    for messages in conversations():
        prompt, both = ids(messages[:1], prompt=True), ids(messages, prompt=False)
        end = len(both) - 1 - both[::-1].index(tokenizer.eos_token_id)
        labels = [-100] * len(prompt) + both[len(prompt) : end + 1] + [-100] * (len(both) - end - 1)
        rows.append({"input_ids": both, "labels": labels, "prompt_tokens": len(prompt)})
    directory = tmp_path_factory.mktemp("tokenized")
    for split in ("train", "validation"):
        write_rows(directory, split, [{**row, "row_id": f"{split}-{index:02d}"} for index, row in enumerate(rows)])
    return directory


@pytest.fixture(scope="session")
def merged(tiny_base: Path, tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base trained until it answers every question, saved in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    rows = read_tokens(tokenized, "train", ["input_ids", "labels"]).to_pylist()
    width = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    directory = tmp_path_factory.mktemp("merged")
    model.to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def variant(merged: Path, tokenized: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a variant by its settings; the same settings give the same directory."""
    made: dict[str, Path] = {}

    def make(**settings: Any) -> Path:
        config = QuantizationConfig(calibration_rows=16, **settings)
        key = config.model_dump_json()
        if key not in made:
            made[key] = tmp_path_factory.mktemp(config.asset_name)
            quantize(merged, tokenized, made[key], config, lambda line: None)
        return made[key]

    return make
