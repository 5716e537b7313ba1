"""What storing a merged weight rounds away, against figures computed for Gaussian matrices."""

import pytest
import torch

from llm_assets.training.merge_statistics import ChangeSizes


def shares(change_share, dtype, rows=512):
    torch.manual_seed(0)
    weight = torch.randn(rows, 512).to(dtype).float()
    b, a = torch.randn(rows, 16), torch.randn(16, 512)
    change = b @ a
    change *= change_share * weight.norm() / change.norm()
    merged = weight + change
    stored = merged.to(dtype)
    sizes = ChangeSizes(rows)
    for first in range(0, rows, 96):  # a block length the sampling step does not divide
        block = slice(first, first + 96)
        sizes.add(*(sizes.sampled(part[block], first) for part in (weight, merged, stored)))
    return sizes.shares()


@pytest.mark.parametrize(
    ("change_share", "dtype", "lost"),
    [
        (0.001, torch.bfloat16, 0.78),
        (0.003, torch.bfloat16, 0.48),
        (0.01, torch.bfloat16, 0.16),
        (0.03, torch.bfloat16, 0.056),
        (0.01, torch.float16, 0.02),
    ],
)
def test_rounding_takes_the_share_known_for_a_change_of_that_size(change_share, dtype, lost):
    found = shares(change_share, dtype)
    assert found["delta_share"] == pytest.approx(change_share, rel=0.05)
    assert found["rounding_share"] == pytest.approx(lost, rel=0.12)


def test_every_sampled_row_counts_once_wherever_blocks_begin():
    sizes, rows = ChangeSizes(200), torch.ones(200, 3)
    for first, last in ((0, 7), (7, 64), (64, 200)):
        part = sizes.sampled(rows[first:last], first)
        sizes.add(part, part * 2, part * 2)
    assert sizes.weight == 3 * len(range(0, 200, sizes.step))
    assert sizes.shares() == {"delta_share": 1.0, "rounding_share": 0.0, "quantization_share": 0.0}
