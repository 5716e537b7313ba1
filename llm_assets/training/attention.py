"""Attention that cannot see across packed documents, computed without a tokens x tokens mask.

`varlen` is one call of PyTorch's own variable-length flash kernel where the GPU has it, else causal attention once per
document. It keeps no padding mask and no key-value cache, so a model carries it only inside `packed_attention` and has
its own implementation back for evaluation and generation. Sliding windows need `block_mask`, whose mask grows with the
square of the tokens in a forward pass; the memory plan counts it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llm_assets.training.training_config import TrainingConfigInvalid

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

VARLEN = "llm_assets_varlen"
LARGEST_FLASH_HEAD = 256  # elements per head of the kernel PyTorch ships: aten, flash_attention_forward
FLASH_HEAD_MULTIPLE = 8  # elements: what that kernel reads at a time
FLASH_CAPABILITY = 8  # Ampere
FLOAT32_MEAN_TOKENS = 512  # the CPU's bfloat16 backward pass is up to 3 times slower on documents shorter than this


def choose_attention(requested: str, model: "PreTrainedModel") -> str:
    """Name of the attention implementation to train with, as transformers knows it.

    Raises:
        TrainingConfigInvalid: varlen on a model with sliding-window layers, or flash attention that is not installed.
    """
    parameter = next(model.parameters())
    device = parameter.device.type
    windowed = has_sliding_window(model.config)
    flash = device == "cuda" and find_spec("flash_attn") is not None
    if requested == "auto":
        installed = flash and parameter.dtype.itemsize == 2 and _on_ampere()
        requested = "flash_attention_2" if installed else ("block_mask" if windowed else "varlen")
    if requested == "varlen" and windowed:
        raise TrainingConfigInvalid(
            f"training.attention varlen attends to the whole document; {model.config.model_type} has sliding-window "
            "layers. Use block_mask."
        )
    if requested == "flash_attention_2" and not flash:
        raise TrainingConfigInvalid(
            f"training.attention flash_attention_2 needs a GPU and the flash-attn package; the device is {device}. "
            "Use auto."
        )
    if requested == "varlen":
        register_varlen()
        return VARLEN
    return "sdpa" if requested == "block_mask" else requested


def has_sliding_window(config: Any) -> bool:
    """Whether any layer of the model attends to a window only."""
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return any(kind != "full_attention" for kind in layers)
    return getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)


def register_varlen() -> None:
    """Make the varlen implementation known to transformers; calling it again changes nothing."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)


def varlen_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: "torch.Tensor",
    max_length_q: int,
    **_: Any,
) -> tuple["torch.Tensor", None]:
    """Causal attention within each document of one packed row.

    Under autocast all three inputs take its type, as they do in PyTorch's own attention: over float32 weights the
    rotary tables leave queries and keys in float32 beside 16-bit values.

    Args:
        module: The attention layer; unused, part of the interface.
        query: Shape `(1, heads, tokens, head_dim)`.
        key: Shape `(1, kv_heads, tokens, head_dim)`.
        value: As `key`.
        attention_mask: Unused: documents are told apart by `cu_seq_lens_q` alone.
        dropout: Attention dropout of the model's config.
        scaling: Factor on the scores; None is `head_dim ** -0.5`.
        cu_seq_lens_q: Document borders `[0, end_0, end_1, ..., tokens]`, int32. Required: without it documents would
            mix.
        max_length_q: Tokens of the longest document.

    Returns:
        Attention output, shape `(1, tokens, heads, head_dim)`, and no weights.
    """
    import torch

    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    with torch.autocast(kind, enabled=False):
        if query.is_cuda and dropout == 0 and _has_kernel(query):
            mixed = _one_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling)
        else:
            mixed = _one_by_one(query, key, value, cu_seq_lens_q, dropout, scaling)
    return mixed.to(query.dtype), None


def _has_kernel(query: "torch.Tensor") -> bool:
    head = query.shape[-1]
    fits = query.dtype.itemsize == 2 and head <= LARGEST_FLASH_HEAD and head % FLASH_HEAD_MULTIPLE == 0
    return fits and _on_ampere()


def _on_ampere() -> bool:
    import torch

    return torch.cuda.get_device_capability()[0] >= FLASH_CAPABILITY


def _one_kernel(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    borders: "torch.Tensor",
    longest: int,
    scaling: float | None,
) -> "torch.Tensor":
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    causal = (-1, 0)
    mixed = varlen_attn(
        q, k.to(q.dtype), v.to(q.dtype), borders, borders, longest, longest,
        scale=scaling, window_size=causal, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    return mixed[None]  # type: ignore[index] - a tensor unless auxiliary results are asked for


def _one_by_one(
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    borders: "torch.Tensor",
    dropout: float,
    scaling: float | None,
) -> "torch.Tensor":
    import torch

    lengths = torch.diff(borders).tolist()
    short = query.device.type == "cpu" and sum(lengths) <= FLOAT32_MEAN_TOKENS * len(lengths)
    parts = [(x.float() if short else x).split(lengths, dim=2) for x in (query, key, value)]
    grouped = query.shape[1] != key.shape[1]
    documents = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        for q, k, v in zip(*parts, strict=True)
    ]
    return torch.cat(documents, 2).transpose(1, 2).contiguous()


@contextmanager
def packed_attention(model: "PreTrainedModel", implementation: str) -> Iterator[None]:
    """Run the block with the training attention, and give the model its own implementation back."""
    own = str(model.config._attn_implementation)
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(own)
