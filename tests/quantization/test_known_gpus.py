"""Devices by name: vendor prefixes do not matter, unknown names are answered with the known ones."""

import pytest
from pydantic import ValidationError

from llm_assets.quantization.hardware import HardwareConfig, UnknownHardware, detect_hardware, find_gpu, known_gpus


@pytest.mark.parametrize(
    ("name", "capability"),
    [("NVIDIA H200", 9.0), ("rtx a5000", 8.6), ("NVIDIA GeForce RTX 4090", 8.9), ("Tesla T4", 7.5), ("B200", 10.0)],
)
def test_a_gpu_is_found_by_its_usual_names(name, capability):
    assert find_gpu(name).compute_capability == capability


def test_an_unknown_gpu_is_answered_with_the_closest_and_all_known_names():
    with pytest.raises(UnknownHardware, match=r"'H2000' is not a known GPU\. Did you mean H200") as refusal:
        find_gpu("H2000")
    assert all(name in str(refusal.value) for name in known_gpus)


def test_the_yaml_refuses_an_unknown_target_and_keeps_the_short_name_of_a_known_one():
    with pytest.raises(ValidationError, match=r"hardware\.target 'M1 Max' is not a known GPU"):
        HardwareConfig(target="M1 Max")
    assert HardwareConfig(target="NVIDIA H200").target == "H200"
    assert HardwareConfig().target is None


def test_this_machine_is_described_without_a_name_table():
    hardware = detect_hardware()
    assert hardware.memory_bytes > 0
    assert (hardware.device == "cuda") == (hardware.compute_capability is not None)
