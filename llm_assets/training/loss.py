"""Cross entropy over supervised tokens only, summed before it is divided.

A mean of means weighs short answers more and changes with the batch layout; a sum over one token count does not. Logits
exist only for the positions that predict a supervised token.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_assets.training.packs import NO_LOSS, Row

if TYPE_CHECKING:
    import torch

EVALUATION_BATCH_TOKENS = 4096


def normalized_loss(outputs: Any, labels: "torch.Tensor", num_items_in_batch: "torch.Tensor") -> "torch.Tensor":
    """A micro-batch's share of the optimiser step's mean cross entropy, in nats.

    Args:
        outputs: Has `logits`, shape `(1, supervised, vocabulary)`.
        labels: The tokens those logits predict, shape `(supervised,)`; may be empty.
        num_items_in_batch: Supervised tokens of the whole optimiser step, over all micro-batches and processes.
    """
    import torch

    total = torch.nn.functional.cross_entropy(outputs.logits[0].float(), labels, reduction="sum")
    return total / num_items_in_batch.clamp(min=1)


def evaluation_loss(model: Any, rows: Sequence[Row]) -> float:
    """Mean cross entropy per supervised token over unpacked rows, in nats, with the model's own attention."""
    import torch

    total, tokens = 0.0, 0
    for logits, targets in predictions(model, rows):
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        tokens += len(targets)
    return total / tokens


def predictions(model: Any, rows: Sequence[Row]) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yield float32 logits `(supervised, vocabulary)` and the tokens to predict `(supervised,)`, batch by batch.

    Rows are padded on the right in batches of equal-as-possible length; which rows share a batch depends on their
    lengths alone.
    """
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for batch in _by_length(rows):
            ids, labels = _padded(batch)
            targets = torch.from_numpy(labels[:, 1:])
            columns = torch.from_numpy(np.flatnonzero((labels[:, 1:] != NO_LOSS).any(0)))
            supervised = targets[:, columns] != NO_LOSS
            mask = torch.from_numpy(np.arange(ids.shape[1]) < np.array([[len(row.input_ids)] for row in batch]))
            with torch.no_grad():
                logits = model(
                    input_ids=torch.from_numpy(ids).to(device),
                    attention_mask=mask.to(device=device, dtype=torch.long),
                    logits_to_keep=columns.to(device),
                    use_cache=False,
                ).logits
            yield logits[supervised.to(device)].float(), targets[:, columns][supervised].to(device)
    finally:
        model.train(was_training)


def _by_length(rows: Sequence[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for index in sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i)):
        row = rows[index]
        if not (row.labels[1:] != NO_LOSS).any():
            continue
        if batch and (len(batch) + 1) * len(row.input_ids) > EVALUATION_BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(batch: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    width = max(len(row.input_ids) for row in batch)
    ids = np.zeros((len(batch), width), dtype=np.int64)
    labels = np.full((len(batch), width), NO_LOSS, dtype=np.int64)
    for line, row in enumerate(batch):
        ids[line, : len(row.input_ids)] = row.input_ids
        labels[line, : len(row.labels)] = row.labels
    return ids, labels
