"""The 4-bit round trip gives the very values a QLoRA run computes with, however the weight is cut into blocks."""

import pytest
import torch
from safetensors.torch import load_file

from llm_assets.training.quantized_base import QuantizationUnknown, nf4_round_trip, require_reproducible

NF4 = {"type": "nf4", "double_quant": True, "block_size": 64}


def test_the_round_trip_is_the_weight_training_loads(tiny_base):
    from bitsandbytes.functional import dequantize_4bit

    from llm_assets.training.adapted_model import load_base

    loaded = load_base(tiny_base, "qlora", "bfloat16").model.layers[0].mlp.up_proj.weight
    original = load_file(tiny_base / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    (found,) = nf4_round_trip([original], "bfloat16")
    assert torch.equal(found, dequantize_4bit(loaded.data, loaded.quant_state).cpu())


def test_blocks_of_rows_have_the_bits_of_the_whole_weight():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from llm_assets.training.adapted_model import training_device

    torch.manual_seed(0)
    weight = (torch.randn(700, 300) * torch.linspace(0.1, 3, 700)[:, None]).to(torch.bfloat16)
    placed = weight.to(training_device())
    expected = dequantize_4bit(*quantize_4bit(placed, blocksize=64, compress_statistics=True, quant_type="nf4"))
    found = torch.cat(list(nf4_round_trip(weight.split([64, 128, 256, 252]), "bfloat16")))
    assert torch.equal(found, expected.cpu())


@pytest.mark.parametrize("changed", [{"type": "fp4"}, {"double_quant": False}, {"block_size": 128}])
def test_another_quantization_is_refused_with_its_settings(changed):
    require_reproducible(NF4, ["model.layers.0.mlp.up_proj"])
    with pytest.raises(QuantizationUnknown, match=r"1 modules were quantized with .*merge\.policy to original"):
        require_reproducible(NF4 | changed, ["model.layers.0.mlp.up_proj"])
