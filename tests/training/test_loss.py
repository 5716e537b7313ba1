import numpy as np
import pytest
import torch

from llm_assets.training import loss
from llm_assets.training.adapted_model import load_base
from llm_assets.training.attention import VARLEN, packed_attention, register_varlen
from llm_assets.training.loss import evaluate, evaluation_loss, label_losses, predictions
from llm_assets.training.packs import NO_LOSS, Row, lay_end_to_end, read_packs, read_rows


@pytest.fixture(scope="module")
def model(tiny_base):
    register_varlen()
    return load_base(tiny_base, "full", "float32", device="cpu").requires_grad_(True)


def gradients(model, micro_batches, tokens):
    model.zero_grad()
    total = 0.0
    with packed_attention(model, VARLEN), label_losses(model):
        for batch in map(lay_end_to_end, micro_batches):
            part = model(**batch, use_cache=False).sum() / max(1, tokens)
            part.backward()
            total += float(part.detach())
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
    total, gradient = gradients(model, [[[silent]]], 0)
    assert total == 0
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


def test_logits_exist_for_one_chunk_of_labels_at_a_time(model, dataset, monkeypatch):
    rows = read_rows(dataset, "train", 12)
    tokens = sum(int((row.labels[1:] != NO_LOSS).sum()) for row in rows)
    whole, expected = gradients(model, [[rows]], tokens)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    monkeypatch.setattr(loss, "logit_chunk_labels", lambda vocabulary, size: 16)
    chunked, found = gradients(model, [[rows]], tokens)
    hook.remove()
    assert max(seen) == 16
    assert sum(seen) == 2 * tokens  # forwards, and again in the backward pass
    assert chunked == pytest.approx(whole, rel=1e-6)
    assert float((expected - found).norm() / expected.norm()) < 1e-6


def test_no_logits_exist_where_there_is_no_label(model, dataset):
    seen = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    rows = read_rows(dataset, "validation")
    supervised = sum(int((row.labels[1:] != NO_LOSS).sum()) for row in rows)
    assert evaluate(model, rows).tokens == supervised == sum(seen)
    hook.remove()


@pytest.mark.parametrize(("setting", "value"), [("logits_scaling", 8.0), ("final_logit_softcapping", 0.5)])
def test_losses_follow_the_logit_scaling_of_the_model(model, dataset, setting, value):
    """Granite divides its logits, Gemma 2 caps them: the loss is that of the logits the model itself gives."""
    rows = read_rows(dataset, "validation", 4)
    with torch.no_grad():
        logits = torch.cat([logits for logits, _ in predictions(model, rows)])
        targets = torch.cat([targets for _, targets in predictions(model, rows)])
        scaled = logits / value if setting == "logits_scaling" else torch.tanh(logits / value) * value
        expected = float(torch.nn.functional.cross_entropy(scaled, targets))
    setattr(model.config, setting, value)
    try:
        assert evaluation_loss(model, rows) == pytest.approx(expected, rel=1e-5)
    finally:
        delattr(model.config, setting)


def test_the_interval_of_the_evaluation_loss_is_that_of_resampled_rows(model, dataset):
    """The 95 % interval of a ratio of sums over rows, against 2,000 bootstrap samples of the rows."""
    rows = read_rows(dataset, "validation")
    found = evaluate(model, rows)
    sums = np.concatenate([loss._row_sums(model, [row]) for row in rows])
    draws = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    means = sums[draws].sum(1)
    assert found.half_width == pytest.approx(1.96 * (means[:, 0] / means[:, 1]).std(), rel=0.1)
    assert found.rows == len(rows)
    assert evaluate(model, rows[:1]).half_width is None


def test_the_model_answers_as_ever_outside_and_without_targets(model):
    ids = torch.arange(5)[None]
    before = model(input_ids=ids).logits
    with label_losses(model), label_losses(model):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(model)
