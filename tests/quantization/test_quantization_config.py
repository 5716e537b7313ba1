"""Settings of a variant: defaults follow the scheme, and what has no effect is refused."""

import pytest
from pydantic import ValidationError

from llm_assets.quantization.config import DEFAULT_MIN_RECOVERY, QuantizationConfig


def test_a_variant_is_named_after_its_scheme_unless_named():
    assert QuantizationConfig(scheme="fp8_dynamic").asset_name == "fp8_dynamic"
    assert QuantizationConfig(scheme="fp8_dynamic", name="small").asset_name == "small"


def test_w4a16_defaults_to_gptq_in_groups_of_128():
    config = QuantizationConfig(scheme="w4a16")
    assert (config.weight_method, config.weights_per_scale) == ("gptq", 128)


def test_every_scheme_has_a_recovery_floor_that_the_yaml_can_replace():
    assert {scheme: QuantizationConfig(scheme=scheme).recovery_floor for scheme in DEFAULT_MIN_RECOVERY} == (
        DEFAULT_MIN_RECOVERY
    )
    assert QuantizationConfig(scheme="w4a16", min_recovery=0.8).recovery_floor == 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "fp8_dynamic", "method": "awq"}, "method: awq has no effect on fp8_dynamic"),
        ({"scheme": "int8_w8a8", "group_size": 64}, "group_size: 64 has no effect on int8_w8a8"),
        ({"scheme": "gguf_q8_0", "kv_cache": "fp8"}, "llama.cpp chooses it at start"),
        ({"scheme": "w4a16", "name": "my/model"}, "name 'my/model' cannot be part of an asset key"),
        ({"scheme": "w3a16"}, "w4a16"),
        ({"scheme": "w4a16", "min_recovery": 1.2}, "less than or equal to 1"),
    ],
)
def test_a_setting_without_effect_is_refused_with_its_remedy(settings, message):
    with pytest.raises(ValidationError, match=message):
        QuantizationConfig(**settings)


def test_weight_only_and_dynamic_schemes_need_no_calibration():
    needing = {scheme for scheme in DEFAULT_MIN_RECOVERY if QuantizationConfig(scheme=scheme).needs_calibration}
    assert needing == {"fp8_static", "int8_w8a8", "w4a16", "nvfp4"}
    assert QuantizationConfig(scheme="fp8_dynamic", kv_cache="fp8").needs_calibration
