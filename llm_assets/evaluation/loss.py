"""Mean cross entropy of the expected answers: finer than any match metric, and measured alike for every scheme."""

from pathlib import Path

import numpy as np

from llm_assets.evaluation.held_out import HeldOut
from llm_assets.quantization.forward import opened
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.packs import Row


def candidate_loss(directory: Path, held_out: HeldOut) -> float:
    """Loss in nats per supervised token over the held-out rows, by a transformers forward pass."""
    rows = [
        Row(np.asarray(ids, dtype=np.int64), np.asarray(labels, dtype=np.int64))
        for ids, labels in zip(held_out.input_ids, held_out.labels, strict=True)
    ]
    with opened(directory) as model:
        return evaluation_loss(model, rows)
