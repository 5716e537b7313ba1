"""Cross entropy over supervised tokens only, summed before it is divided.

A mean of means weighs short answers more and changes with the batch layout; a sum over one token count does not. Logits
exist only for positions that predict a supervised token, and for no more of them at a time than take half a gibibyte;
beyond that the backward pass computes the output head once more.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_assets.training.adapted_model import unwrapped
from llm_assets.training.memory_need import logit_chunk_labels
from llm_assets.training.packs import NO_LOSS, Row

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EVALUATION_BATCH_TOKENS = 4096
NORMAL_95 = 1.96


@dataclass(frozen=True)
class EvaluationLoss:
    """Loss over held-out rows, in nats per supervised token.

    Attributes:
        mean: Over all supervised tokens.
        half_width: Half of its 95 % confidence interval, rows being the independent draws; None for a single row.
        rows: Rows with a supervised token.
        tokens: Supervised tokens.
    """

    mean: float
    half_width: float | None
    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + (f" ± {self.half_width:.4f}" if self.half_width is not None else "")


@contextmanager
def label_losses(model: "PreTrainedModel") -> Iterator[None]:
    """Within the block, the model called with `predicting` and `targets` returns one loss per label and no logits.

    `predicting` are the flat positions that predict, `targets` the tokens they should, both shape `(labels,)`. The
    result is float32 of that shape. Called without them, the model answers as ever. Wrappers around the model pass both
    through, so adapters, autocast and data parallelism see an ordinary forward pass.
    """
    if getattr(model, "_gives_label_losses", False):
        yield
        return
    own = model.__dict__.get("forward")
    model.forward = partial(_forward, model, model.forward)  # type: ignore[method-assign]
    model._gives_label_losses = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del model.forward, model._gives_label_losses
        if own is not None:
            model.forward = own


def _forward(
    model: "PreTrainedModel",
    plain: Any,
    *args: Any,
    predicting: "torch.Tensor | None" = None,
    targets: "torch.Tensor | None" = None,
    **inputs: Any,
) -> Any:
    if predicting is None or targets is None:
        return plain(*args, **inputs)
    inputs.pop("labels", None)  # peft passes every argument of a causal language model, given or not
    hidden = model.base_model(*args, **inputs).last_hidden_state
    return losses_of_labels(model, hidden.flatten(0, 1)[predicting], targets)


def losses_of_labels(model: "PreTrainedModel", hidden: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Cross entropy of each label, with the logits of one chunk of labels in memory at a time.

    Args:
        model: Its output head is used, with the scaling its config asks for.
        hidden: Last hidden states of the predicting positions, shape `(labels, hidden)`.
        targets: Tokens to predict, shape `(labels,)`; may be empty, and the result is still part of the graph.

    Returns:
        Nats, float32, shape `(labels,)`.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    size = logit_chunk_labels(model.config.vocab_size, hidden.element_size())
    starts = range(0, max(1, len(targets)), size)
    if len(starts) == 1 or not torch.is_grad_enabled():
        parts = [_chunk(model, hidden[at : at + size], targets[at : at + size]) for at in starts]
    else:
        parts = [
            checkpoint(
                _chunk, model, hidden[at : at + size], targets[at : at + size],
                use_reentrant=False, preserve_rng_state=False,
            )
            for at in starts
        ]  # fmt: skip
    return torch.cat(parts)


def _chunk(model: "PreTrainedModel", hidden: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    import torch

    head: Any = model.get_output_embeddings()
    logits = head(hidden)
    if scaling := getattr(model.config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(model.config, "final_logit_softcapping", None):  # Gemma 2
        logits = torch.tanh(logits / cap) * cap
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def evaluation_loss(model: Any, rows: Sequence[Row]) -> float:
    """Mean cross entropy per supervised token over unpacked rows, in nats, with the model's own attention."""
    return evaluate(model, rows).mean


def evaluate(model: Any, rows: Sequence[Row]) -> EvaluationLoss:
    """Loss over unpacked rows with its confidence interval, with the model's own attention.

    The mean is a ratio of two sums over rows, nats and tokens; its variance is that of the ratio estimator,
    `n / (n - 1) · Σ (nats_i - mean · tokens_i)² / (Σ tokens_i)²` (Cochran, Sampling Techniques, section 6.3).
    """
    sums = np.concatenate([_row_sums(model, batch) for batch in _by_length(rows)])
    nats, tokens = sums.T
    mean = float(nats.sum() / tokens.sum())
    spread = float(((nats - mean * tokens) ** 2).sum())
    count = len(sums)
    half_width = NORMAL_95 * math.sqrt(count / (count - 1) * spread) / float(tokens.sum()) if count > 1 else None
    return EvaluationLoss(mean, half_width, count, int(tokens.sum()))


def _row_sums(model: Any, batch: Sequence[Row]) -> np.ndarray:
    """Nats and supervised tokens of each row, float64, shape `(rows, 2)`."""
    import torch

    inputs, labels = _padded_inputs(model, batch)
    lines, columns = np.nonzero(labels[:, 1:] != NO_LOSS)
    device = inputs["input_ids"].device
    with _evaluating(model), torch.no_grad(), label_losses(unwrapped(model)):
        losses = model(
            **inputs,
            predicting=torch.from_numpy(lines * labels.shape[1] + columns).to(device),
            targets=torch.from_numpy(labels[:, 1:][lines, columns]).to(device),
            use_cache=False,
        )
    nats = np.bincount(lines, losses.double().cpu().numpy(), minlength=len(batch))
    return np.stack([nats, np.bincount(lines, minlength=len(batch))], axis=1)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def predictions(model: Any, rows: Sequence[Row]) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yield float32 logits `(supervised, vocabulary)` and the tokens to predict `(supervised,)`, batch by batch.

    Rows are padded on the right in batches of equal-as-possible length; which rows share a batch depends on their
    lengths alone.
    """
    import torch

    with _evaluating(model):
        for batch in _by_length(rows):
            inputs, labels = _padded_inputs(model, batch)
            targets = torch.from_numpy(labels[:, 1:])
            columns = torch.from_numpy(np.flatnonzero((labels[:, 1:] != NO_LOSS).any(0)))
            supervised = targets[:, columns] != NO_LOSS
            device = inputs["input_ids"].device
            with torch.no_grad():
                logits = model(**inputs, logits_to_keep=columns.to(device), use_cache=False).logits
            yield logits[supervised.to(device)].float(), targets[:, columns][supervised].to(device)


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


def _padded_inputs(model: Any, batch: Sequence[Row]) -> tuple[dict[str, "torch.Tensor"], np.ndarray]:
    """Token ids and attention mask `(rows, width)` on the model's device, and the labels of the same shape."""
    import torch

    lengths = np.array([len(row.input_ids) for row in batch])
    ids = np.zeros((len(batch), lengths.max()), dtype=np.int64)
    labels = np.full(ids.shape, NO_LOSS, dtype=np.int64)
    for line, row in enumerate(batch):
        ids[line, : lengths[line]] = row.input_ids
        labels[line, : lengths[line]] = row.labels
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    device = next(model.parameters()).device
    inputs = {"input_ids": ids, "attention_mask": mask}
    return {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}, labels
