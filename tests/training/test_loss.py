import numpy as np
import pytest
import torch

from llm_assets.training.adapted_model import load_base
from llm_assets.training.attention import VARLEN, packed_attention, register_varlen
from llm_assets.training.loss import evaluation_loss, normalized_loss
from llm_assets.training.packs import NO_LOSS, Row, lay_end_to_end, read_packs, read_rows


@pytest.fixture(scope="module")
def model(tiny_base):
    register_varlen()
    return load_base(tiny_base, "full", "float32", device="cpu").requires_grad_(True)


def gradients(model, micro_batches, tokens):
    model.zero_grad()
    total = 0.0
    with packed_attention(model, VARLEN):
        for batch in map(lay_end_to_end, micro_batches):
            targets = batch.pop("labels")
            batch.pop("shift_labels")
            loss = normalized_loss(model(**batch, use_cache=False), targets, torch.tensor(tokens))
            loss.backward()
            total += float(loss)
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


def test_eight_micro_batches_of_one_pack_equal_one_of_eight(model, dataset):
    rows = read_rows(dataset, "train")
    packs = [[rows[i] for i in pack] for pack in read_packs(dataset)[:8]]
    tokens = sum(int((row.labels[1:] != NO_LOSS).sum()) for pack in packs for row in pack)
    one, together = gradients(model, [packs], tokens)
    many, accumulated = gradients(model, [[pack] for pack in packs], tokens)
    assert many == pytest.approx(one, rel=1e-6)
    assert float((together - accumulated).norm() / together.norm()) < 1e-6


def test_a_micro_batch_without_labels_adds_nothing_and_has_a_gradient(model):
    silent = Row(np.array([5, 6, 7]), np.full(3, NO_LOSS))
    loss, gradient = gradients(model, [[[silent]]], 0)
    assert loss == 0
    assert float(gradient.abs().sum()) == 0


def test_the_evaluation_loss_is_the_mean_over_supervised_tokens_of_rows_alone(model, dataset):
    rows = read_rows(dataset, "validation", 8)
    total = tokens = 0.0
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(row.input_ids)[None]).logits[0].double().log_softmax(-1)
        for place in np.flatnonzero(row.labels[1:] != NO_LOSS):
            total -= float(logits[place, row.labels[place + 1]])
            tokens += 1
    assert evaluation_loss(model, rows) == pytest.approx(total / tokens, rel=1e-5)


def test_the_evaluation_loss_does_not_depend_on_the_order_of_rows(model, dataset):
    rows = read_rows(dataset, "validation")
    assert evaluation_loss(model, rows) == pytest.approx(evaluation_loss(model, rows[::-1]), rel=1e-6)
