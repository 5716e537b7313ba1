"""What a training run did, as numbers for a person and as the files an adapter is published with.

Durations stay out of the files: the same run twice publishes the same bytes.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.training.isolation import Isolation
from llm_assets.training.memory_plan import MemoryPlan
from llm_assets.training.packs import NO_LOSS, Row
from llm_assets.training.training_config import TrainingConfig

MEAN_OVER_STEPS = 10  # at most; a short run compares its halves


@dataclass(frozen=True)
class TrainingReport:
    """A finished training run. Losses are nats per supervised token.

    Attributes:
        steps: Optimiser steps taken; fewer than planned after early stopping.
        tokens: Tokens trained on, repeats counted.
        supervised_tokens: Of those, the ones with a loss.
        first_loss: Mean training loss of the first 10 steps, in a short run of its first half.
        final_loss: Mean training loss of as many last steps.
        base_evaluation_loss: Loss of the base model on the evaluation rows; None without evaluation.
        evaluation_loss: Loss of the published weights on the same rows.
        evaluation_half_width: Half of its 95 % confidence interval.
        trainable_parameters: Values that were trained.
        skipped_steps: Steps whose update was left out as a loss spike.
        tokens_per_second: Of the steps this process took, evaluations and checkpoints left out.
        model_flops_share: Share of the device's peak they used; None where the peak is unknown.
        plan: The memory plan in force at the end.
        measured_memory_bytes: Peak of tensors on a GPU; on a CPU what the process's own peak grew by.
        isolation: The pack isolation measured before the first step.
        history: One row per step: step, loss, learning_rate, gradient_norm, evaluation_loss (None where not evaluated).
    """

    steps: int
    tokens: int
    supervised_tokens: int
    first_loss: float
    final_loss: float
    base_evaluation_loss: float | None
    evaluation_loss: float | None
    evaluation_half_width: float | None
    trainable_parameters: int
    skipped_steps: int
    tokens_per_second: float
    model_flops_share: float | None
    plan: MemoryPlan
    measured_memory_bytes: int
    isolation: Isolation
    history: list[dict[str, Any]]


@dataclass(frozen=True)
class Provenance:
    """What a run was made from: fingerprints of its inputs, which modules were in 4 bit, and the rows trained on."""

    dataset: str
    base: str
    quantized_modules: Sequence[str]
    rows: Sequence[Row]


def step_rows(log_history: Sequence[Mapping[str, Any]], evaluated: Mapping[int, float]) -> list[dict[str, Any]]:
    """One row per optimiser step from the trainer's log history."""
    return [
        {name: entry[name] for name in ("step", "loss", "learning_rate")}
        | {"gradient_norm": entry.get("grad_norm"), "evaluation_loss": evaluated.get(entry["step"])}
        for entry in log_history
        if "loss" in entry
    ]


def first_and_final_loss(history: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean training loss over the first and over the last steps, the two never overlapping."""
    count = max(1, min(MEAN_OVER_STEPS, len(history) // 2))
    losses = [row["loss"] for row in history]
    return sum(losses[:count]) / count, sum(losses[-count:]) / count


def write_records(out: Path, report: TrainingReport, config: TrainingConfig, provenance: Provenance) -> None:
    """Write `loss.parquet` and `training.json` beside the weights."""
    schema = pa.schema(
        [
            ("step", pa.int32()),
            ("loss", pa.float64()),
            ("learning_rate", pa.float64()),
            ("gradient_norm", pa.float64()),
            ("evaluation_loss", pa.float64()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(report.history, schema), out / "loss.parquet")
    numbers = (
        "steps", "tokens", "supervised_tokens", "trainable_parameters", "skipped_steps", "first_loss", "final_loss",
        "base_evaluation_loss", "evaluation_loss", "evaluation_half_width",
    )  # fmt: skip
    four_bit = {"type": "nf4", "double_quant": True, "block_size": 64, "compute_dtype": config.compute_dtype}
    record = {
        **{name: getattr(report, name) for name in numbers},
        "method": config.method,
        "parameters": config.model_dump(mode="json"),
        "micro_batch_packs": report.plan.micro_batch_packs,
        "accumulation_steps": report.plan.accumulation_steps,
        "gradient_checkpointing": report.plan.gradient_checkpointing,
        "end_token_ids": end_token_ids(provenance.rows),
        "quantization": four_bit if config.method == "qlora" else None,
        "quantized_modules": list(provenance.quantized_modules),
        "dataset_fingerprint": provenance.dataset,
        "base_fingerprint": provenance.base,
    }
    (out / "training.json").write_text(json.dumps(record, indent=1, sort_keys=True))


def copy_tokenizer(dataset: Path, out: Path) -> None:
    """Put the tokenizer and template the rows were rendered with beside the weights."""
    for path in sorted((dataset / "tokenizer").iterdir()):
        shutil.copyfile(path, out / path.name)


def end_token_ids(rows: Sequence[Row]) -> list[int]:
    """The tokens that supervised answers end with: where a model trained on these rows stops."""
    last = (row.labels[row.labels != NO_LOSS][-1:] for row in rows)
    return sorted({int(token) for tokens in last for token in tokens})
