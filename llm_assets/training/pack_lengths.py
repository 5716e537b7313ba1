"""How many tokens each pack of a dataset has, read without the tokens; a study needs no more of its rows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_assets.data.token_files import TokenFile
from llm_assets.training import packs
from llm_assets.training.training_config import TrainingConfig


@dataclass(frozen=True)
class PackLengths:
    """How many tokens each pack of a dataset has, which is all a study needs to know of its rows."""

    packs: list[list[int]]
    tokens: np.ndarray

    @classmethod
    def of(cls, dataset: Path) -> "PackLengths":
        """Read the lengths of a tokenized dataset; raises `DatasetUnusable` where it holds no pack."""
        found = packs.read_packs(dataset)
        lengths = TokenFile(dataset, "train").lengths
        return cls(found, np.array([lengths[pack].sum() for pack in found]))

    def trained(self, config: TrainingConfig, steps: int) -> int:
        """Tokens in the first steps of a run."""
        count = steps * config.packs_per_step
        order = packs.PackSequence([], self.packs, count, config.seed).order[:count]
        return int(self.tokens[order].sum())

    def largest(self, count: int) -> int:
        """Tokens of a forward pass over the longest packs."""
        return int(np.sort(self.tokens)[-count:].sum())
