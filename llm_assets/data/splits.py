"""Which split a row belongs to is decided by the hash of its group alone, so adding rows never moves a row.

The cost: shares are met on average, not exactly, and a small dataset can leave a split empty, which is refused.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError

SPLITS = ("train", "validation", "test")
SPELLINGS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "validation",
    "test": "test",
}


class SplitEmpty(LLMAssetsError):
    """A split that should hold rows got none."""


class SplitUnknown(LLMAssetsError):
    """A row names a split that does not exist."""


class SplitConfig(Config):
    """Shares of the held-out splits; the rest trains."""

    validation: float = Field(default=0.05, ge=0, lt=1, description="Share of rows that stop and tune the training.")
    test: float = Field(default=0.05, ge=0, lt=1, description="Share of rows that only the evaluation sees.")
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
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Source columns the split reads."""
        return tuple(name for name in (self.group_column, self.split_column) if name)


def split_of(row: Mapping[str, Any], prompt_key: str, config: SplitConfig) -> str:
    """Split of one row: as its split column says, else by the hash of its group (default: its normalised prompt).

    Raises:
        SplitUnknown: the split column holds something else than a split's name.
    """
    if config.split_column:
        value = str(row.get(config.split_column)).casefold()
        if value not in SPELLINGS:
            raise SplitUnknown(
                f"Row {row.get('row_id')}: column '{config.split_column}' says '{row.get(config.split_column)}'. "
                f"It must say one of {', '.join(SPELLINGS)}."
            )
        return SPELLINGS[value]
    group = str(row.get(config.group_column)) if config.group_column else prompt_key
    draw = int.from_bytes(hashlib.sha256(f"{config.seed}:{group}".encode()).digest()[:8]) / 2**64
    if draw < config.test:
        return "test"
    return "validation" if draw < config.test + config.validation else "train"


def refuse_empty_splits(rows: Mapping[str, int], config: SplitConfig) -> None:
    """Raise `SplitEmpty` when a split with a share above zero, or train, got no row."""
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    for split, share in shares.items():
        if rows[split] == 0 and share > 0 and (split == "train" or not config.split_column):
            raise SplitEmpty(
                f"Split '{split}' got none of {sum(rows.values())} rows (share {share:g}). Bring more rows or groups, "
                f"raise its share, or set it to 0 if the lineage can do without."
            )
