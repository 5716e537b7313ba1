"""Recovery: how much of the merged model's quality a variant keeps, measured row by row on the same held-out rows.

    recovery = right next tokens of the variant / right next tokens of the merged model, over supervised tokens

It is 1 for a lossless variant, cheap (one forward pass per row) and paired: both models see the same rows, so a
bootstrap over rows needs a few hundred, not thousands. It does not see drift over a long completion; the evaluation
asset measures that on generated answers.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_assets.core import CheckResult
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.forward import RowStatistics, row_statistics

RESAMPLES = 2000


def measured_recovery(
    merged: Path, variant: Path, held_out: pa.Table, config: QuantizationConfig, log: Callable[[str], None]
) -> CheckResult:
    """`recovery` of two model directories on the rows of `calibration.held_out_rows`; one model in memory at a time."""
    merged_statistics = row_statistics(merged, held_out, log)
    variant_statistics = row_statistics(variant, held_out, log)
    return recovery(merged_statistics, variant_statistics, config.recovery_floor, config.seed)


def recovery(merged: RowStatistics, variant: RowStatistics, min_recovery: float, seed: int) -> CheckResult:
    """Pass when the lower end of recovery's 95 % interval reaches the floor.

    Args:
        merged: Statistics of the 16-bit model.
        variant: Statistics of the variant on the same rows, in the same order.
        min_recovery: Floor in 0..1.
        seed: Seed of the bootstrap.

    Returns:
        Numbers: recovery, recovery_low, recovery_high, merged_loss, variant_loss, loss_delta (nats per supervised
        token), perplexity_ratio, agreement (share of positions with the same prediction), tokens, held_out_rows.
        Rows: the held-out rows that lost most.

    Raises:
        ValueError: the two were not measured on the same rows.
    """
    if merged.row_ids != variant.row_ids or not np.array_equal(merged.tokens, variant.tokens):
        raise ValueError("recovery compares two models on the same rows; these statistics are of different rows.")
    tokens = int(merged.tokens.sum())
    merged_loss, variant_loss = float(merged.losses.sum() / tokens), float(variant.losses.sum() / tokens)
    if not math.isfinite(variant_loss):
        broken = [row for row, loss in zip(variant.row_ids, variant.losses, strict=True) if not math.isfinite(loss)]
        return CheckResult(False, f"The variant's loss is not finite on {len(broken)} rows, first {broken[0]}.")
    if merged.correct.sum() == 0:
        return CheckResult(False, f"The merged model predicts none of {tokens} tokens right: nothing to recover.")
    share = float(variant.correct.sum() / merged.correct.sum())
    low, high = paired_interval(merged.correct, variant.correct, seed)
    verdict = "keeps" if low >= min_recovery else "does not keep"
    return CheckResult(
        passed=low >= min_recovery,
        summary=(
            f"The variant {verdict} {min_recovery:.1%} of the merged model's next-token accuracy: recovery {share:.2%} "
            f"(95 % interval {low:.2%} to {high:.2%}), loss {variant_loss - merged_loss:+.4f} nats per token."
        ),
        numbers={
            "recovery": share,
            "recovery_low": low,
            "recovery_high": high,
            "min_recovery": min_recovery,
            "merged_loss": merged_loss,
            "variant_loss": variant_loss,
            "loss_delta": variant_loss - merged_loss,
            "perplexity_ratio": math.exp(min(variant_loss - merged_loss, 700.0)),
            "agreement": _agreement(merged, variant),
            "tokens": tokens,
            "held_out_rows": len(merged.row_ids),
        },
        rows=_largest_losses(merged, variant),
    )


def paired_interval(merged_correct: np.ndarray, variant_correct: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the ratio of sums under resampling of rows, both models together.

    Args:
        merged_correct: Right tokens per row, shape `(n,)`, with a positive sum.
        variant_correct: The same for the variant, shape `(n,)`.
        seed: Seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    rows = len(merged_correct)
    ratios = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, rows, rows)
        if (below := merged_correct[drawn].sum()) > 0:
            ratios.append(variant_correct[drawn].sum() / below)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _agreement(merged: RowStatistics, variant: RowStatistics) -> float:
    pairs = zip(merged.predictions, variant.predictions, strict=True)
    return float(sum(int((one == other).sum()) for one, other in pairs) / merged.tokens.sum())


def _largest_losses(
    merged: RowStatistics, variant: RowStatistics, count: int = 5
) -> list[dict[str, str | int | float]]:
    tokens = np.maximum(merged.tokens, 1)
    delta = (variant.losses - merged.losses) / tokens
    return [
        {
            "row_id": merged.row_ids[row],
            "tokens": int(merged.tokens[row]),
            "right_merged": int(merged.correct[row]),
            "right_variant": int(variant.correct[row]),
            "loss_delta": round(float(delta[row]), 5),
        }
        for row in np.argsort(-delta, kind="stable")[:count]
    ]
