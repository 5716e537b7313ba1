import pytest

from llm_assets.training.device import TrainingDevice
from llm_assets.training.model_shape import ModelShape
from llm_assets.training.throughput import Throughput, step_flops

SHAPE = ModelShape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=10)


def test_operations_are_those_counted_by_hand():
    linear = 2 * (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4 + 3 * 4 * 8)
    attention = 6 * 2 * 4 * (3**2 + 2**2)
    expected = 4 * (linear * 5 + 10 * 4 * 2) + attention
    assert step_flops(SHAPE, full=False, lengths=[3, 2], supervised=2) == expected
    full = step_flops(SHAPE, full=True, lengths=[3, 2], supervised=2)
    assert full - attention == 1.5 * (expected - attention)


def test_operations_are_those_pytorch_counts(tiny_base):
    """Forward and backward of a frozen base under an adapter of rank 1, whose own products are small."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from llm_assets.training.adapted_model import add_adapter, load_base
    from llm_assets.training.training_config import TrainingConfig

    config = TrainingConfig(method="lora", compute_dtype="float32", rank=1)
    model = add_adapter(load_base(tiny_base, "lora", "float32", device="cpu"), config).train()
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=torch.arange(256)[None], use_cache=False).logits.sum().backward()
    weights = step_flops(ModelShape.read(tiny_base), full=False, lengths=[256], supervised=256)
    attention = 6 * 2 * 128 * 256**2
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    assert weights - attention == pytest.approx(counted, rel=0.05)


def test_speed_counts_tokens_of_rows_over_all_steps():
    meter = Throughput(SHAPE, False, TrainingDevice("cuda", "NVIDIA H200", 1, 9.0), processes=2)
    assert (meter.tokens_per_second, meter.model_flops_share) == (0.0, None)
    meter.begin()
    step = meter.end([3, 2], 2)
    assert step["tokens_per_second"] == pytest.approx(meter.tokens_per_second)
    flops_per_token = step_flops(SHAPE, full=False, lengths=[3, 2], supervised=2) / 5
    assert meter.model_flops_share == pytest.approx(meter.tokens_per_second / 2 * flops_per_token / 989.4e12)


def test_no_share_of_an_unknown_peak_is_made_up():
    meter = Throughput(SHAPE, False, TrainingDevice("cpu", "x86_64", 1))
    meter.begin()
    assert meter.end([3], 1).keys() == {"tokens_per_second"}
