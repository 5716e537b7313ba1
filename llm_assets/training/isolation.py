"""Proof, on the model that is about to be trained, that packed documents cannot see each other.

Packing leaks without a sound: one all-ones mask or a live key-value cache is enough, and the loss still falls. So the
run starts by measuring it, with the batches and the forward pass of training, and refuses; that costs three forward
passes over a few rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.training import packs
from llm_assets.training.adapted_model import unwrapped
from llm_assets.training.attention import packed_attention
from llm_assets.training.loss import label_losses
from llm_assets.training.packs import Row

if TYPE_CHECKING:
    import torch

LEAK_LIMIT = 1e-3
DIFFERENCE_LIMIT = 0.05


class PackIsolationBroken(LLMAssetsError):
    """Packed documents influence each other under this attention implementation."""


@dataclass(frozen=True)
class Isolation:
    """What packing does to the loss of a document's tokens, relative to their spread (standard deviation).

    Attributes:
        leak: Largest change in later documents when the first document's tokens are replaced. Isolated: 0.
        difference: Mean change against each document run alone with the model's own attention. Isolated: rounding.
        documents: Documents compared.
    """

    leak: float
    difference: float
    documents: int


def measure_isolation(
    model: Any, attention: str, rows: Sequence[Row], vocabulary: int, compute_dtype: str = "float32"
) -> Isolation:
    """Compare the losses of a few documents packed, packed behind other tokens, and alone.

    Args:
        model: The model in the state in which it is about to be trained, training mode included; only dropout is off.
        attention: Name of the training attention; see `choose_attention`.
        rows: Documents; the first three with at least two tokens are used, a single one twice.
        vocabulary: Token ids to draw the replaced tokens from.
        compute_dtype: Type training's autocast takes products in; float32 runs without autocast.
    """
    documents = [Row(row.input_ids, row.input_ids) for row in rows if len(row.input_ids) > 1][:3]
    if len(documents) == 1:
        documents = documents * 2
    first, *later = documents
    replaced = np.random.default_rng(0).integers(0, vocabulary, len(first.input_ids))
    with _without_dropout(model), _autocast(model, compute_dtype):
        with packed_attention(unwrapped(model), attention):
            packed = _losses(model, documents)
            disturbed = _losses(model, [Row(replaced, first.labels), *later])
        alone = np.concatenate([_losses(model, [row]) for row in documents])
    spread = float(alone.std()) or 1.0
    start = len(first.input_ids) - 1  # the first token of a document has no loss
    return Isolation(
        leak=float(np.abs(packed[start:] - disturbed[start:]).max()) / spread,
        difference=float(np.abs(packed - alone).mean()) / spread,
        documents=len(documents),
    )


def check_isolation(isolation: Isolation) -> CheckResult:
    """Packed documents are independent: no leak, and the same losses as alone up to rounding."""
    passed = isolation.leak <= LEAK_LIMIT and isolation.difference <= DIFFERENCE_LIMIT
    return CheckResult(
        passed=passed,
        summary=(
            f"Replacing one document's tokens changes its neighbours' losses by {isolation.leak:.1e} of their spread "
            f"(limit {LEAK_LIMIT}); packed and alone differ by {isolation.difference:.1e} (limit {DIFFERENCE_LIMIT})."
        ),
        numbers={"leak": isolation.leak, "difference": isolation.difference, "documents": isolation.documents},
    )


def require_isolation(isolation: Isolation, attention: str) -> None:
    """Raise `PackIsolationBroken` unless the check passes."""
    result = check_isolation(isolation)
    if not result.passed:
        raise PackIsolationBroken(
            f"Attention {attention} mixes packed documents of this model. {result.summary} An attention mask or a "
            "key-value cache (use_cache of the base model's config) does that; so does an attention that does not know "
            "documents. Set training.attention to another value (varlen, block_mask or flash_attention_2)."
        )


def _losses(model: Any, documents: Sequence[Row]) -> np.ndarray:
    """Losses of all tokens but each document's first, in the batch and by the call of a training step."""
    import torch

    batch = packs.lay_end_to_end([documents])
    device = next(model.parameters()).device
    moved = {name: value if isinstance(value, int) else value.to(device) for name, value in batch.items()}
    with torch.no_grad(), label_losses(unwrapped(model)):
        return model(**moved).cpu().numpy()


def _autocast(model: Any, compute_dtype: str) -> "torch.autocast":
    import torch

    kind = next(model.parameters()).device.type
    return torch.autocast(kind, getattr(torch, compute_dtype), enabled=compute_dtype != "float32")


@contextmanager
def _without_dropout(model: Any) -> Iterator[None]:
    modules = [
        module
        for module in model.modules()
        if module.training and ("Dropout" in type(module).__name__ or hasattr(module, "attention_dropout"))
    ]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module in modules:
            module.train()
