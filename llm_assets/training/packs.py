"""Tokenized rows as the trainer reads them: packs for training, laid end to end in one row; single rows for evaluation.

A run is one long seeded sequence of packs, so that every optimiser step holds the same number of packs and a resumed
run finds its place by counting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError

if TYPE_CHECKING:
    import torch

NO_LOSS = -100


class DatasetUnusable(LLMAssetsError):
    """A tokenized dataset is missing a file, or has nothing to train or evaluate on."""


@dataclass(frozen=True)
class Row:
    """One tokenized conversation.

    Attributes:
        input_ids: int64, shape `(tokens,)`.
        labels: int64, shape `(tokens,)`; `NO_LOSS` where a token is not learned. Not shifted.
    """

    input_ids: np.ndarray
    labels: np.ndarray


def read_rows(dataset: Path, split: str, limit: int | None = None) -> list[Row]:
    """Read the first `limit` rows of a split, in file order.

    Raises:
        DatasetUnusable: the file is missing, holds no row, or supervises no token.
    """
    path = dataset / f"{split}.parquet"
    if not path.exists():
        raise DatasetUnusable(f"{path} does not exist. Materialize tokenized_dataset again.")
    table = pq.read_table(path, columns=["input_ids", "labels"]).slice(0, limit)
    ids, labels = (_arrays(table, name) for name in ("input_ids", "labels"))
    rows = [Row(i, label) for i, label in zip(ids, labels, strict=True)]
    if not any((row.labels[1:] != NO_LOSS).any() for row in rows):
        raise DatasetUnusable(
            f"{path} has {len(rows)} rows and not one supervised token among them. Check the label_mask check of "
            "tokenized_dataset, and that split leaves rows for every split."
        )
    return rows


def _arrays(table: Any, name: str) -> list[np.ndarray]:
    column = table.column(name).combine_chunks()
    flat = column.flatten().to_numpy().astype(np.int64)
    borders = np.cumsum(np.concatenate([[0], column.value_lengths().to_numpy()]))
    return [flat[a:b] for a, b in pairwise(borders)]


def read_packs(dataset: Path) -> list[list[int]]:
    """Row indices of each pack.

    Raises:
        DatasetUnusable: there is no pack.
    """
    path = dataset / "packs.parquet"
    packs = pq.read_table(path).column("rows").to_pylist() if path.exists() else []
    if not packs:
        raise DatasetUnusable(f"{path} holds no pack. Materialize tokenized_dataset again.")
    return packs


class PackSequence:
    """The packs of a whole run in the order they are trained on: each epoch is its own seeded permutation.

    `sequence[i]` is the list of rows in the i-th pack of the run.
    """

    def __init__(self, rows: Sequence[Row], packs: Sequence[Sequence[int]], length: int, seed: int) -> None:
        epochs = -(-length // len(packs))
        self.order = np.concatenate([np.random.default_rng([seed, e]).permutation(len(packs)) for e in range(epochs)])
        self.rows, self.packs, self.length = rows, packs, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Row]:
        return [self.rows[row] for row in self.packs[self.order[index]]]

    def tokens(self, packs: int) -> tuple[int, int]:
        """Tokens, and supervised tokens, in the first `packs` packs of the run."""
        lengths = np.array([len(row.input_ids) for row in self.rows])
        supervised = np.array([int((row.labels[1:] != NO_LOSS).sum()) for row in self.rows])
        counts = np.array([[lengths[pack].sum(), supervised[pack].sum()] for pack in self.packs])
        total = counts[self.order[:packs]].sum(0)
        return int(total[0]), int(total[1])


def lay_end_to_end(packs: Sequence[Sequence[Row]]) -> dict[str, "torch.Tensor | int"]:
    """Flatten packs to one row that holds each document once, with no padding.

        documents [a b c] [d e], labels on c and e   ->   input_ids    a b c d e
                                                          position_ids 0 1 2 0 1
                                                          predicting       1   3      (the tokens before c and e)

    Returns:
        `input_ids` and `position_ids` `(1, tokens)`; `logits_to_keep` and `shift_labels` `(supervised,)`: where a
        learned token is predicted, and which; `labels`, the same as `shift_labels`; document borders
        `cu_seq_lens_q/k` int32 and the longest document `max_length_q/k`.
    """
    import torch

    documents = [row for pack in packs for row in pack]
    lengths = [len(row.input_ids) for row in documents]
    labels = np.concatenate([row.labels for row in documents])
    starts = np.cumsum([0, *lengths])
    labels[starts[:-1]] = NO_LOSS  # its prediction would come from the last token of the document before
    predicting = np.flatnonzero(labels[1:] != NO_LOSS)
    borders = torch.from_numpy(starts.astype(np.int32))
    targets = torch.from_numpy(labels[predicting + 1])
    return {
        "input_ids": torch.from_numpy(np.concatenate([row.input_ids for row in documents]))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        "logits_to_keep": torch.from_numpy(predicting),
        "labels": targets,
        "shift_labels": targets,
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
