"""Calibration sees training rows only, spread evenly over their lengths, and every row it saw is on record.

Held-out rows in calibration would make recovery look better than it is; windows of random text would set scales for
activations the model never produces in use.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from llm_assets.core import LLMAssetsError
from llm_assets.data.token_files import TokenFile, read_tokens


class CalibrationEmpty(LLMAssetsError):
    """There is no training row to calibrate on."""


def calibration_set(tokenized: Path, rows: int, seed: int) -> pa.Table:
    """Choose training rows stratified by length: sort by length, cut into `rows` equal bins, draw one from each.

        lengths 3 4 9 | 20 21 25 | 60 61 80, rows 3  ->  one of each bin

    Args:
        tokenized: A tokenized dataset's directory; only the train split is read.
        rows: Rows wanted; all of them when there are fewer.
        seed: Seed of the draw.

    Returns:
        Columns `row_id` (string) and `input_ids` (list of integers), shortest first.

    Raises:
        CalibrationEmpty: the training split has no row.
    """
    train = read_tokens(tokenized, "train", ["row_id"])
    if train.num_rows == 0:
        raise CalibrationEmpty(f"The train split of {tokenized} has no row to calibrate on. Check split and curation.")
    lengths = TokenFile(tokenized, "train").lengths
    by_length = np.lexsort((np.asarray(train["row_id"].to_pylist(), dtype=object).astype(str), lengths))
    generator = np.random.default_rng(seed)
    bins = np.array_split(by_length, min(rows, train.num_rows))
    return read_tokens(
        tokenized, "train", ["row_id", "input_ids"], [int(generator.choice(one_bin)) for one_bin in bins]
    )


def held_out_rows(tokenized: Path, rows: int, seed: int) -> pa.Table:
    """Choose validation rows for recovery and for loading prompts, seeded, in file order.

    Returns:
        Columns `row_id`, `input_ids`, `labels` (-100 where there is no loss) and `prompt_tokens`.

    Raises:
        CalibrationEmpty: the validation split has no row.
    """
    total = len(TokenFile(tokenized, "validation"))
    if total == 0:
        raise CalibrationEmpty(
            f"The validation split of {tokenized} has no row to measure recovery on. Raise split.validation."
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:rows]).tolist()
    return read_tokens(tokenized, "validation", ["row_id", "input_ids", "labels", "prompt_tokens"], chosen)


def prompts(held_out: pa.Table, count: int) -> pa.Table:
    """The first `count` rows cut before the last assistant turn: columns `row_id` and `prompt_token_ids`."""
    head = held_out.slice(0, count)
    cut = [
        ids[:length]
        for ids, length in zip(head["input_ids"].to_pylist(), head["prompt_tokens"].to_pylist(), strict=True)
    ]
    return pa.table({"row_id": head["row_id"], "prompt_token_ids": pa.array(cut, pa.list_(pa.int32()))})
