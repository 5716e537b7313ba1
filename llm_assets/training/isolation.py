"""Proof, on the model that is about to be trained, that packed documents cannot see each other.

Packing leaks without a sound: one all-ones mask or a live key-value cache is enough, and the loss still falls. So the
run starts by measuring it and refuses; that costs three forward passes over a few rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.training.adapted_model import unwrapped
from llm_assets.training.attention import packed_attention
from llm_assets.training.packs import Row, lay_end_to_end

LEAK_LIMIT = 1e-3
DIFFERENCE_LIMIT = 0.05


class PackIsolationBroken(LLMAssetsError):
    """Packed documents influence each other under this attention implementation."""


@dataclass(frozen=True)
class Isolation:
    """What packing does to a document's logits, relative to how far logits spread (their standard deviation).

    Attributes:
        leak: Largest change in later documents when the first document's tokens are replaced. Isolated: 0.
        difference: Mean change against each document run alone with the model's own attention. Isolated: rounding.
        documents: Documents compared.
    """

    leak: float
    difference: float
    documents: int


def measure_isolation(model: Any, attention: str, rows: Sequence[Row], vocabulary: int) -> Isolation:
    """Compare the logits of a few documents packed, packed behind other tokens, and alone.

    Args:
        model: The model in the state in which it is about to be trained.
        attention: Name of the training attention; see `choose_attention`.
        rows: Documents; the first three with at least two tokens are used.
        vocabulary: Token ids to draw the replaced tokens from.
    """
    documents = [row for row in rows if len(row.input_ids) > 1][:3]
    if len(documents) == 1:
        documents = documents * 2
    first, *later = documents
    replaced = np.random.default_rng(0).integers(0, vocabulary, len(first.input_ids))
    with packed_attention(unwrapped(model), attention):
        packed = _packed_logits(model, documents)
        disturbed = _packed_logits(model, [Row(replaced, first.labels), *later])
    alone = np.concatenate([_logits_alone(model, row) for row in documents])
    spread = float(alone.std()) or 1.0
    start = len(first.input_ids)
    return Isolation(
        leak=float(np.abs(packed[start:] - disturbed[start:]).max()) / spread,
        difference=float(np.abs(packed - alone).mean()) / spread,
        documents=len(documents),
    )


def check_isolation(isolation: Isolation) -> CheckResult:
    """Packed documents are independent: no leak, and the same logits as alone up to rounding."""
    passed = isolation.leak <= LEAK_LIMIT and isolation.difference <= DIFFERENCE_LIMIT
    return CheckResult(
        passed=passed,
        summary=(
            f"Replacing one document's tokens changes its neighbours' logits by {isolation.leak:.1e} of their spread "
            f"(limit {LEAK_LIMIT}); packed and alone differ by {isolation.difference:.1e} (limit {DIFFERENCE_LIMIT})."
        ),
        numbers={"leak": isolation.leak, "difference": isolation.difference, "documents": isolation.documents},
    )


def require_isolation(isolation: Isolation, attention: str) -> None:
    """Raise `PackIsolationBroken` unless the check passes."""
    result = check_isolation(isolation)
    if not result.passed:
        raise PackIsolationBroken(
            f"Attention {attention} mixes packed documents of this model. {result.summary} "
            "Set training.attention to another value (varlen, block_mask or flash_attention_2)."
        )


def _packed_logits(model: Any, documents: Sequence[Row]) -> np.ndarray:
    batch = lay_end_to_end([documents])
    for name in ("labels", "shift_labels", "logits_to_keep"):
        batch.pop(name)
    return _logits(model, batch)


def _logits_alone(model: Any, row: Row) -> np.ndarray:
    import torch

    return _logits(model, {"input_ids": torch.from_numpy(row.input_ids)[None]})


def _logits(model: Any, batch: dict[str, Any]) -> np.ndarray:
    """Logits in the mode the model is in, without dropout, shape `(tokens, vocabulary)`."""
    import torch

    device = next(model.parameters()).device
    moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(**moved, use_cache=False).logits[0].float().cpu().numpy()
    finally:
        model.train(was_training)
