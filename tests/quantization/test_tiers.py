"""GPUs requested for a model of some size: the published floor, and more where the weights need it."""

import pytest

from llm_assets.quantization.hardware import UnknownHardware, find_gpu
from llm_assets.quantization.tiers import TierTooSmall, gpu_tier, needed_bytes, refuse_too_small


@pytest.mark.parametrize("purpose", ["training", "serving"])
@pytest.mark.parametrize(("billions", "gpus"), [(7, 1), (13, 1), (30, 1), (70, 2)])
def test_the_published_table_is_the_floor(purpose, billions, gpus):
    tier = gpu_tier(billions * 10**9, purpose, method="qlora")
    assert (tier.gpu_type, tier.num_gpus) == ("A100", gpus)


def test_more_gpus_are_asked_for_where_the_weights_need_them():
    assert gpu_tier(70 * 10**9, "training", method="lora").num_gpus == 4
    assert gpu_tier(8 * 10**9, "training", method="full").num_gpus == 2
    assert gpu_tier(70 * 10**9, "serving", gpu_type="H100").num_gpus == 2
    assert gpu_tier(8 * 10**9, "serving", gpu_type="L4").num_gpus == 1
    assert gpu_tier(8 * 10**9, "serving", gpu_type="T4").num_gpus == 2


def test_a_quantized_variant_needs_fewer():
    assert gpu_tier(70 * 10**9, "serving", bytes_per_parameter=0.6).num_gpus == 1


def test_serving_needs_its_weights_and_a_twentieth():
    assert needed_bytes(10**9, "serving") == 2_100_000_000


def test_a_pod_asks_for_the_tiers_gpus():
    assert gpu_tier(70 * 10**9, "serving").pod_resources() == {"limits": {"nvidia.com/gpu": "2"}}


def test_gpus_that_are_too_small_are_refused_with_those_that_are_not():
    with pytest.raises(
        TierTooSmall, match=r"8.0B parameters need 16.8 GB .* 1 x T4 has 15.5 GB .*Use 2 x T4 or 1 x A100"
    ):
        refuse_too_small("T4", 1, 8 * 10**9, "serving")
    refuse_too_small("T4", 2, 8 * 10**9, "serving")


def test_what_no_node_holds_is_refused():
    with pytest.raises(TierTooSmall, match=r"405.0B parameters need .* 8 x A100"):
        gpu_tier(405 * 10**9, "serving")


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(UnknownHardware, match="Did you mean A100"):
        gpu_tier(10**9, "serving", gpu_type="A1000")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a100_80gb", "A100"),
        ("A100-40GB", "A100 40GB"),
        ("h200_141gb", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Tesla V100-SXM2-32GB", "V100"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
    ],
)
def test_a_gpu_may_be_named_as_its_driver_or_a_cloud_does(written, meant):
    assert find_gpu(written).name == meant
