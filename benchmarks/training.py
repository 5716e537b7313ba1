"""LoRA training of a small model on the demo's rows: packed documents, against what a user would run instead.

Every side trains the same adapter in bfloat16 once over the same rows, with about the same tokens per optimiser step.
Only tokens that belong to a row count: padding is work without a result. The clock runs from the end of the first step
to the end of the last, so loading, checkpoints and what a first step sets up are left out on all sides. The learning
rate is as good as zero, so that all sides must arrive at one loss, that of the base model on those rows: the benchmark
ends if one of them does not, or learns from other tokens.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._demo import write_chat_dataset, write_random_base
from benchmarks._harness import Row as Comparison
from benchmarks._harness import interleaved, main
from benchmarks._training_anchors import (
    LEARNING_RATE,
    MAX_LENGTH_TOKENS,
    PACKS_PER_STEP,
    RANK,
    Seen,
    by_hand,
    padded_to_max,
    with_trainer,
    with_trl,
)
from benchmarks._training_gpu import measure_gpu
from llm_assets.data import TokenizationConfig
from llm_assets.data.formats import TextToSQLFormat
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.training import TrainingConfig
from llm_assets.training.forking import gpus
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.packs import PackSequence, Row, read_packs, read_rows
from llm_assets.training.trainer import train_adapter

TUTORIAL = f"a tutorial's loop, every row padded to {MAX_LENGTH_TOKENS} tokens"
TRL = "TRL `SFTTrainer` with its own packing"
PADDED = "`transformers.Trainer`, batches padded to their longest row"
GROUPED = "`transformers.Trainer`, the same with `group_by_length`"
BY_HAND = "a PyTorch loop written by hand, with the same packs and attention"
GOALS = {TUTORIAL: 6.0, TRL: 1.3, PADDED: 1.2, GROUPED: 1.0, BY_HAND: 0.97}
ROW_TOKENS = 320
SAME_LOSS = 2e-3  # relative; batches of other shapes round bfloat16 products differently


def measure(quick: bool, scratch: Path) -> list[Comparison]:
    """Real tokens per CPU second of the six trainings."""
    base = write_random_base(scratch, hidden=256)
    dataset = write_dataset(base, scratch, packs=8 if quick else 48)
    rows, lists = read_rows(dataset, "train"), read_packs(dataset)
    order = PackSequence(rows, lists, len(lists), seed=0)
    packs = [order[place] for place in range(len(lists))]
    in_order = [row for pack in packs for row in pack]
    expected = base_loss(base, in_order)
    sides = {
        "ours": lambda: with_ours(base, dataset, scratch),
        TUTORIAL: partial(padded_to_max, base, in_order),
        TRL: partial(with_trl, base, in_order, scratch),
        PADDED: partial(with_trainer, base, in_order, scratch, "random"),
        GROUPED: partial(with_trainer, base, in_order, scratch, "group_by_length"),
        BY_HAND: partial(by_hand, base, packs),
    }
    found = interleaved({name: partial(measured, name, run, in_order, expected) for name, run in sides.items()},
                        rounds=1 if quick else 3)  # fmt: skip
    speed = {name: metrics["tokens_per_cpu_second"] for name, metrics in found.items()}
    work = "LoRA training: tokens without padding"
    on_cpu = [
        Comparison(work, speed["ours"], speed[name], name, "tokens/CPU s", "higher", goal)
        for name, goal in GOALS.items()
    ]
    return on_cpu if quick or not gpus() else [*on_cpu, *measure_gpu(scratch / "gpu")]


def measured(name: str, run: Any, rows: list[Row], expected: float) -> Mapping[str, float]:
    """Run one side, and end the benchmark unless it learned from the same tokens at the same loss."""
    seen = run()
    tokens = sum(len(row.input_ids) for row in rows)
    supervised = sum(int((row.labels[1:] >= 0).sum()) for row in rows)
    if (sum(seen.tokens), sum(seen.supervised)) != (tokens, supervised):
        raise SystemExit(
            f"{name} trained on {sum(seen.tokens)} tokens, {sum(seen.supervised)} of them supervised; the rows hold "
            f"{tokens} and {supervised}: the sides are not comparable."
        )
    if abs(seen.mean_loss / expected - 1) > SAME_LOSS:
        raise SystemExit(f"{name} found a loss of {seen.mean_loss:.5f} where the model has {expected:.5f}.")
    return {"tokens_per_cpu_second": seen.tokens_per_cpu_second, "loss": seen.mean_loss}


def with_ours(base: Path, dataset: Path, scratch: Path) -> Seen:
    """Packs laid end to end, attention per document, logits where there is a label."""
    config = TrainingConfig(
        method="lora", rank=RANK, learning_rate=LEARNING_RATE, warmup_share=0, scheduler="constant", epochs=1,
        batch_packs=PACKS_PER_STEP, accumulation_steps=1, evaluation_rows=0, save_every_steps=10_000, report_to=(),
    )  # fmt: skip
    number, seen = len(list(scratch.glob("ours_*"))), Seen()
    out, work = scratch / f"ours_{number}", scratch / f"work_{number}"
    out.mkdir()
    rows, lists = read_rows(dataset, "train"), read_packs(dataset)
    order = PackSequence(rows, lists, len(lists), config.seed)

    def report(step: int, curves: Mapping[str, float]) -> None:
        if "loss" in curves:
            seen.losses.append(curves["loss"])
            seen.stamp()

    train_adapter(base, dataset, out, work, config, log=lambda _: None, report=report)
    for first in range(0, len(lists), PACKS_PER_STEP):
        seen.add_rows([row for place in range(first, first + PACKS_PER_STEP) for row in order[place]])
    return seen


def base_loss(base: Path, rows: list[Row]) -> float:
    """The model's loss on the rows, one by one unpacked: what no learning leaves it at."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return evaluation_loss(model, rows)


def write_dataset(base: Path, scratch: Path, packs: int) -> Path:
    """Tokenized rows in exactly so many packs: those with INSERT statements of up to 320 tokens, 236 on average.

    They fill a quarter of the longest the model takes, as rows of chat data sets do.
    """
    chat = write_chat_dataset(scratch, 100 + 14 * packs, TextToSQLFormat(ddl_only=False))
    dataset = scratch / "tokenized_dataset"
    dataset.mkdir()
    lengths = TokenizationConfig(max_length_tokens=ROW_TOKENS, pack_length_tokens=MAX_LENGTH_TOKENS)
    tokenize_dataset(chat, base, dataset, lengths, lambda _: None)
    kept = read_packs(dataset)[:packs]
    if len(kept) < packs:
        raise SystemExit(f"the demo's rows fill only {len(kept)} packs of {packs}: write more rows")
    pq.write_table(pa.table({"rows": pa.array(kept, pa.list_(pa.int32()))}), dataset / "packs.parquet")
    return dataset


if __name__ == "__main__":
    main("training", measure)
