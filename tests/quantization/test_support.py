"""The support table: what runs on which compute capability, and what a refusal says."""

from typing import get_args

import pytest

from llm_assets.quantization.config import QuantizationConfig, Scheme
from llm_assets.quantization.hardware import Hardware, find_gpu
from llm_assets.quantization.support import (
    TABLE,
    Placement,
    QuantizationUnsupported,
    placement,
    refuse_unsupported,
)

CPU = Hardware(name="EPYC", device="cpu", memory_bytes=2**34)


def test_every_scheme_has_a_row_and_the_engine_its_config_names():
    assert {scheme: support.engine for scheme, support in TABLE.items()} == {
        scheme: QuantizationConfig(scheme=scheme).engine for scheme in get_args(Scheme)
    }


def test_a_refusal_says_what_is_needed_what_is_there_and_what_to_do():
    with pytest.raises(QuantizationUnsupported) as refusal:
        refuse_unsupported(QuantizationConfig(scheme="nvfp4"), find_gpu("RTX A5000"))
    assert str(refusal.value) == (
        "nvfp4 needs compute capability 10.0 (Blackwell); this GPU is an RTX A5000 (8.6). "
        "Use w4a16, or set hardware.target to the GPU that will run it."
    )


@pytest.mark.parametrize(
    ("scheme", "runs_on", "refused_on"),
    [
        ("fp8_dynamic", ["L4", "RTX 4090", "H100", "B200"], ["T4", "A100", "A10G"]),
        ("int8_w8a8", ["T4", "A100", "H200"], ["V100", "B200", "RTX 5090"]),
        ("w4a16", ["T4", "A10G", "H200", "B200"], ["V100"]),
        ("nvfp4", ["B200", "RTX 5090"], ["H200", "L40S"]),
        ("nvfp4a16", ["T4", "H200", "B200"], ["V100"]),
        ("mxfp4", ["B200"], ["H100"]),
        ("gguf_q4_0", ["V100", "T4", "B200"], []),
    ],
)
def test_a_scheme_runs_where_its_engine_computes_in_that_format(scheme, runs_on, refused_on):
    config = QuantizationConfig(scheme=scheme)
    assert {gpu: placement(config, find_gpu(gpu)).where for gpu in runs_on} == dict.fromkeys(
        runs_on, Placement.RUNS_HERE
    )
    for gpu in refused_on:
        with pytest.raises(QuantizationUnsupported, match=gpu):
            refuse_unsupported(config, find_gpu(gpu))


def test_an_8_bit_kv_cache_has_its_own_floor():
    config = QuantizationConfig(scheme="w4a16", kv_cache="fp8")
    with pytest.raises(QuantizationUnsupported, match=r"kv_cache: fp8 needs compute capability 8.9.*without kv_cache"):
        refuse_unsupported(config, find_gpu("A100"))


def test_a_cpu_makes_every_scheme_and_says_which_ones_run_elsewhere():
    where = {scheme: placement(QuantizationConfig(scheme=scheme), CPU).where for scheme in TABLE}
    elsewhere = {scheme for scheme, place in where.items() if place is Placement.MAKE_HERE_RUN_THERE}
    assert elsewhere == {"fp8_static", "nvfp4", "nvfp4a16", "mxfp4"}
    assert Placement.UNSUPPORTED not in where.values()
    assert "no FP4 kernel" in placement(QuantizationConfig(scheme="nvfp4"), CPU).reason
