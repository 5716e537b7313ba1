"""The weights a QLoRA adapter was trained on: what 4 bits made of the base.

bitsandbytes quantizes the scales of all 64-value blocks a second time, around their mean over the whole tensor. The
codes and scales of a weight are therefore kept, a quarter of its size, and its values made from them block by block:
the kernels need eight times the tensor they are given.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError

if TYPE_CHECKING:
    import torch

BLOCK_SIZE = 64
SCALE_BLOCK_SIZE = 256

# How training loads a base for method qlora (see adapted_model.load_base).
REPRODUCED = {"type": "nf4", "double_quant": True, "block_size": BLOCK_SIZE}


class QuantizationUnknown(LLMAssetsError):
    """An adapter was trained on a 4-bit base of another kind than this can make again."""


def require_reproducible(quantization: Mapping[str, Any] | None, modules: list[str]) -> None:
    """Raise `QuantizationUnknown` unless the recorded quantization is the one `nf4_round_trip` repeats."""
    found = {name: (quantization or {}).get(name) for name in REPRODUCED}
    if modules and found != REPRODUCED:
        raise QuantizationUnknown(
            f"training.json says that {len(modules)} modules were quantized with {found}; only {REPRODUCED} can be "
            "repeated. Materialize lora_adapter again, or set merge.policy to original."
        )


def nf4_round_trip(blocks: Iterable["torch.Tensor"], compute_dtype: str) -> Iterator["torch.Tensor"]:
    """The values a weight has in double-quantised NF4, in the type it was computed with in training.

    Uses the kernels training uses, on the GPU where there is one.

    Args:
        blocks: The weight's rows in order; each block but the last holds a multiple of 64 values.
        compute_dtype: As torch names it.

    Yields:
        The same blocks as training saw them, on the CPU; the first one after the last was given.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    from llm_assets.training.adapted_model import training_device

    device, dtype = training_device(), getattr(torch, compute_dtype)
    packed = []
    for block in blocks:
        loaded = block.to(device, dtype)
        packed.append(quantize_4bit(loaded, blocksize=BLOCK_SIZE, compress_statistics=False, quant_type="nf4"))
    scales = [state.absmax for _, state in packed]
    restored = iter(_quantized_again(torch.cat(scales)).split([len(scale) for scale in scales]))
    while packed:
        codes, state = packed.pop(0)
        state.absmax = next(restored)
        yield dequantize_4bit(codes, state).cpu()


def _quantized_again(scales: "torch.Tensor") -> "torch.Tensor":
    """Block scales after their own 8-bit quantization around the mean, as `quantize_4bit(compress_statistics=True)`."""
    from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

    offset = scales.mean()
    codes, state = quantize_blockwise(scales - offset, blocksize=SCALE_BLOCK_SIZE)
    restored = dequantize_blockwise(codes, state)
    restored += offset
    return restored
