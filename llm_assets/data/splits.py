"""Which split a row belongs to is decided by its group's hash and by rows before it, so appended rows never move one.

A group is the rows of one value of a column, or of one prompt. The split of a group is drawn from its hash, which no
other row changes. Two options look at other rows, and only at earlier ones: a fixed number of rows fills up in row
order, and near-duplicates follow the first of them. No rule could do that and ignore order: if a row is like two older
ones in different splits, something has to give, and it is the newcomer. The cost: shares are met on average, not
exactly, and a small dataset can leave a split empty, which is refused.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)  # how arrays of rows say it; a higher number is more protected
SPELLINGS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "validation",
    "test": "test",
}


class SplitEmpty(LLMAssetsError):
    """A split that should hold rows got none."""


class SplitTooSmall(LLMAssetsError):
    """A split of a fixed size got fewer rows."""


class SplitUnknown(LLMAssetsError):
    """A row names a split that does not exist."""


class SplitConfig(Config):
    """Shares of the held-out splits; the rest trains."""

    validation: float = Field(default=0.05, ge=0, lt=1, description="Share of rows that stop and tune the training.")
    test: float = Field(default=0.05, ge=0, lt=1, description="Share of rows that only the evaluation sees.")
    validation_rows: int | None = Field(
        default=None,
        ge=1,
        description="Fixed size: the first so many rows of the share, whole groups; the share's other rows train.",
    )
    test_rows: int | None = Field(default=None, ge=1, description="Fixed size of the test split, likewise.")
    seed: int = Field(default=0, description="Changes which groups are held out.")
    group_column: str | None = Field(
        default=None,
        description="Source column whose equal values stay in one split; by default rows with the same prompt do.",
    )
    split_column: str | None = Field(
        default=None,
        description="Source column that names each row's split (train, validation, test); overrules the shares.",
    )

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} + test {self.test} leave nothing to train on; lower them")
        if self.group_column and self.split_column:
            raise ValueError(f"group_column '{self.group_column}' has no say beside split_column; give one of the two")
        for split in ("validation", "test"):
            rows, share = getattr(self, f"{split}_rows"), getattr(self, split)
            if rows and (self.split_column or not share):
                raise ValueError(
                    f"{split}_rows {rows} takes the first rows of a share, and there is none; set {split} to a share "
                    "that holds them, such as 0.1, and leave split_column out"
                )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Source columns the split reads."""
        return tuple(name for name in (self.group_column, self.split_column) if name)


def group_key(row: Mapping[str, Any], prompt_key: int, config: SplitConfig) -> int:
    """The 64-bit hash of a row's group: its group column's value, or its prompt where there is none."""
    value = row.get(config.group_column) if config.group_column else None
    group = f"prompt {prompt_key:016x}" if value is None else f"column {value}"
    return int.from_bytes(hashlib.blake2b(f"{config.seed}:{group}".encode(), digest_size=8).digest())


def given_split(row: Mapping[str, Any], config: SplitConfig) -> int | None:
    """The split that the row's own split column names; None where the lineage has no such column.

    Raises:
        SplitUnknown: the split column holds something else than a split's name.
    """
    if not config.split_column:
        return None
    value = str(row.get(config.split_column)).casefold()
    if value not in SPELLINGS:
        raise SplitUnknown(
            f"Row {row.get('row_id')}: column '{config.split_column}' says '{row.get(config.split_column)}'. "
            f"It must say one of {', '.join(SPELLINGS)}."
        )
    return SPLITS.index(SPELLINGS[value])


def drawn_splits(group_keys: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Split of each group key, uint64: uint8, shape `(n,)`; a key's share of 2**64 is its draw."""
    draws = group_keys / 2.0**64
    drawn = np.where(draws < config.test, TEST, np.where(draws < config.test + config.validation, VALIDATION, TRAIN))
    return drawn.astype(np.uint8)


def refuse_bad_splits(rows: Mapping[str, int], config: SplitConfig) -> None:
    """Refuse splits that did not get what the config asks for.

    Raises:
        SplitEmpty: train, or a split with a share above zero, got no row.
        SplitTooSmall: a split of a fixed size got fewer rows.
    """
    total = sum(rows.values())
    for split, share in {"train": 1.0, "validation": config.validation, "test": config.test}.items():
        if rows[split] == 0 and share > 0 and (split == "train" or not config.split_column):
            raise SplitEmpty(
                f"Split '{split}' got none of {total} rows (share {share:g}). Bring more rows or groups, "
                f"raise its share, or set it to 0 if the lineage can do without."
            )
    for split, wanted in {"validation": config.validation_rows, "test": config.test_rows}.items():
        if wanted and rows[split] < wanted:
            raise SplitTooSmall(
                f"Split '{split}' got {rows[split]} of the {wanted} rows that {split}_rows asks for: its share of "
                f"{total} rows holds no more. Raise {split}, lower {split}_rows, or bring more rows."
            )
