"""Tokenized rows as the trainer reads them: packs for training, laid end to end in one row; single rows for evaluation.

A run is one long seeded sequence of packs, so that every optimiser step holds the same number of packs and a resumed
run finds its place by counting. Processes that train together take turns in the same sequence, so that a step holds the
same packs however many they are.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.token_files import TokenFile, TokensUnreadable

if TYPE_CHECKING:
    import torch

NO_LOSS = -100


class DatasetUnusable(LLMAssetsError):
    """A tokenized dataset is missing a file, or has nothing to train or evaluate on."""


@dataclass(frozen=True)
class Row:
    """One tokenized conversation.

    Attributes:
        input_ids: Integers, shape `(tokens,)`.
        labels: Integers, shape `(tokens,)`; `NO_LOSS` where a token is not learned. Not shifted.
        row_id: What an error names the row by.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    row_id: str = ""


class StoredRows(Sequence[Row]):
    """Rows of a split, each read through the file's memory map when it is asked for."""

    def __init__(self, file: TokenFile, limit: int | None) -> None:
        self.file, self._size = file, len(file) if limit is None else min(limit, len(file))
        self._row_ids = [row_id for batch in file.batches for row_id in batch["row_id"].to_pylist()]

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._size))]
        row = index + self._size if index < 0 else int(index)
        if not 0 <= row < self._size:
            raise IndexError(index)
        return Row(self.file.ids(row), self.file.labels(row), self._row_ids[row])


def read_rows(dataset: Path, split: str, limit: int | None = None) -> StoredRows:
    """The first `limit` rows of a split, in file order; opening them copies no token.

    Raises:
        DatasetUnusable: the file is missing, holds no row, or supervises no token.
    """
    try:
        rows = StoredRows(TokenFile(dataset, split), limit)
    except TokensUnreadable as unreadable:
        raise DatasetUnusable(str(unreadable)) from None
    if not any((row.labels[1:] != NO_LOSS).any() for row in rows):
        held = f"{len(rows)} rows and not one supervised token among them" if rows else "no row"
        raise DatasetUnusable(f"{split} of {dataset} has {held}. {_REMEDIES[split]}")
    return rows


_REMEDIES = {
    "train": "Nothing is left to train on: look at the drop reasons of chat_dataset and at the label_mask check of "
    "tokenized_dataset.",
    "validation": "Raise split.validation so that it holds rows; only outside a lineage, whose study needs them, does "
    "training.evaluation_rows 0 train without evaluation.",
    "test": "Raise split.test so that it holds rows.",
}


def read_packs(dataset: Path) -> list[list[int]]:
    """Row indices of each pack.

    Raises:
        DatasetUnusable: there is no pack.
    """
    path = dataset / "packs.parquet"
    packs = pq.read_table(path).column("rows").to_pylist() if path.exists() else []
    if not packs:
        raise DatasetUnusable(
            f"{path} holds no pack, so there are no training rows. Look at the drop reasons of chat_dataset and at "
            "dropped_too_long of tokenized_dataset, then materialize both again."
        )
    return packs


class PackSequence:
    """The packs one process trains on, in order: each epoch is its own seeded permutation of all packs.

    Which packs a step holds is a function of seed and epoch alone; of several processes, each takes every world-th:

        order of the run  4 1 3 0 2 | 2 0 4 ...      rank 0 of 2  4 3 2 0 ...      rank 1 of 2  1 0 2 4 ...

    `sequence[i]` is the list of rows in this process's i-th pack.
    """

    def __init__(
        self, rows: Sequence[Row], packs: Sequence[Sequence[int]], length: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        epochs = -(-length * world // len(packs))
        self.order = np.concatenate([np.random.default_rng([seed, e]).permutation(len(packs)) for e in range(epochs)])
        self.rows, self.packs, self.length, self.rank, self.world = rows, packs, length, rank, world

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Row]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self._rows_of(self.order[index * self.world + self.rank])

    def tokens(self, packs: int) -> tuple[int, int]:
        """Tokens, and supervised tokens, in the first `packs` packs of every process."""
        lengths = np.array([len(row.input_ids) for row in self.rows])
        supervised = np.array([int((row.labels[1:] != NO_LOSS).sum()) for row in self.rows])
        counts = np.array([[lengths[pack].sum(), supervised[pack].sum()] for pack in self.packs])
        total = counts[self.order[: packs * self.world]].sum(0)
        return int(total[0]), int(total[1])

    def heaviest(self, packs: int) -> list[list[Row]]:
        """The packs with most tokens, heaviest first; repeated if there are too few."""
        by_tokens = sorted(range(len(self.packs)), key=lambda pack: (-self._tokens_of(pack), pack))
        return [self._rows_of(by_tokens[place % len(by_tokens)]) for place in range(packs)]

    @property
    def longest_pack_tokens(self) -> int:
        """Tokens of the fullest pack."""
        return max(self._tokens_of(pack) for pack in range(len(self.packs)))

    def _rows_of(self, pack: int) -> list[Row]:
        return [self.rows[row] for row in self.packs[pack]]

    def _tokens_of(self, pack: int) -> int:
        return sum(len(self.rows[row].input_ids) for row in self.packs[pack])


def require_fitting(rows: Iterable[Row], vocabulary: int, context_tokens: int) -> None:
    """Refuse rows a base model cannot read: a GPU would end in a device assert hours later.

    Raises:
        DatasetUnusable: a token id is outside the vocabulary, or a row is longer than the context; names the row.
    """
    for row in rows:
        if int(row.input_ids.max()) >= vocabulary:
            raise DatasetUnusable(
                f"Row {row.row_id} holds token id {int(row.input_ids.max())}; the base model's vocabulary has "
                f"{vocabulary}. The rows were tokenized for another base: materialize tokenized_dataset again."
            )
        if len(row.input_ids) > context_tokens:
            raise DatasetUnusable(
                f"Row {row.row_id} has {len(row.input_ids)} tokens; the base model was trained for {context_tokens}. "
                "Lower tokenization.max_length_tokens."
            )


def lay_end_to_end(packs: Sequence[Sequence[Row]]) -> dict[str, "torch.Tensor | int"]:
    """Flatten packs to one row that holds each document once, with no padding.

        documents [a b c] [d e], labels on c and e   ->   input_ids    a b c d e
                                                          position_ids 0 1 2 0 1
                                                          predicting       1   3      (the tokens before c and e)
                                                          targets          c   e

    Returns:
        `input_ids` and `position_ids` `(1, tokens)`; `predicting` and `targets` `(supervised,)`: where a learned token
        is predicted, and which; document borders `cu_seq_lens_q/k` int32 and the longest document `max_length_q/k`.
    """
    import torch

    documents = [row for pack in packs for row in pack]
    lengths = [len(row.input_ids) for row in documents]
    labels = np.concatenate([row.labels for row in documents]).astype(np.int64)
    starts = np.cumsum([0, *lengths])
    labels[starts[:-1]] = NO_LOSS  # its prediction would come from the last token of the document before
    predicting = np.flatnonzero(labels[1:] != NO_LOSS)
    borders = torch.from_numpy(starts.astype(np.int32))
    ids = np.concatenate([row.input_ids for row in documents]).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        "predicting": torch.from_numpy(predicting),
        "targets": torch.from_numpy(labels[predicting + 1]),
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def supervised_tokens(packs: Sequence[Sequence[Row]]) -> int:
    """Labels with a loss in some packs: what the losses of an optimiser step are divided by."""
    return sum(int((row.labels[1:] != NO_LOSS).sum()) for pack in packs for row in pack)
