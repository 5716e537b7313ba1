"""How large an engine must be for the rows it will see, computed before it starts.

vLLM's own default takes 92 % of the machine's memory whatever the work is. Here the KV cache is what the requests can
fill, bounded by the device, so a small job on a shared machine stays small; the cost is one pass over the lengths.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from llm_assets.core import LLMAssetsError
from llm_assets.engine.architecture import Architecture
from llm_assets.engine.tasks import EngineConfig, EngineName

DEFAULT_SEQUENCES = {"vllm": 256, "llama_cpp": 8}  # vLLM's scheduler default; llama.cpp slots share one batch
LLAMA_CPP_PADDING = 256  # llama.cpp rounds each slot's cells up: src/llama-context.cpp, `n_ctx_seq`


class ContextTooLong(LLMAssetsError):
    """A context was asked for that the model does not have."""


class EngineMemoryTooSmall(LLMAssetsError):
    """The device cannot hold the weights and the cache of a single row."""


@dataclass(frozen=True)
class EnginePlan:
    """The sizes an engine is started with.

    Attributes:
        max_model_len: Prompt plus completion tokens of the longest row served.
        max_num_seqs: Rows decoded at the same time.
        kv_cache_bytes: Bytes of the KV cache on each device; None lets the engine measure its device and choose.
        kv_cache_tokens: Tokens that fit into it, as the engine will report it; None where the engine chooses.
        context_tokens: Longest row the model can serve; a prompt that fills it is refused as a row, not as a job.
    """

    max_model_len: int
    max_num_seqs: int
    kv_cache_bytes: int | None
    kv_cache_tokens: int | None
    context_tokens: int

    def as_json(self) -> dict[str, Any]:
        """Plain values, as the worker reads them."""
        return asdict(self)


def plan_engine(
    architecture: Architecture,
    prompt_tokens: Sequence[int] | np.ndarray,
    *,
    max_new_tokens: int,
    engine: EngineName,
    config: EngineConfig,
    device_memory_bytes: int | None,
) -> EnginePlan:
    """Size the context, the batch and the KV cache for the given requests.

    A block holds `block_size` tokens and costs `2 · layers · kv_heads · head_dim · kv_dtype_bytes · block_size` bytes.
    The cache holds the `max_num_seqs` longest rows (prompt + `max_new_tokens`), each in whole blocks, and one block the
    engine keeps for itself, if that fits:

        cache ≤ device · share - weights - step
        step  = batched tokens · (4 · hidden + 3 · intermediate) · dtype_bytes + max_num_seqs · vocabulary · 8

    where `step` bounds the tensors that live at once in a gated decoder layer (residual, normed input, query, output;
    gate, up, product) and the float32 logits with their sorted copy. The reported capacity is
    `⌊blocks / ⌈max_model_len / block_size⌉ · max_model_len⌋`: vllm/v1/core/kv_cache_utils.py, `get_kv_cache_capacity`.

    Args:
        architecture: Shape of the model.
        prompt_tokens: Length of each prompt, shape `(n,)`; rows longer than the context are not planned for.
        max_new_tokens: Completion tokens allowed per row.
        engine: Which engine; llama.cpp's cache has cells per slot, in multiples of 256, and no blocks.
        config: Values set here are taken as they are.
        device_memory_bytes: Memory the engine may count on; None when this process cannot see the device.

    Raises:
        ContextTooLong: `max_model_len` is set beyond what the model was trained for.
        EngineMemoryTooSmall: one row of `max_model_len` tokens does not fit beside the weights.
    """
    if (config.max_model_len or 0) > architecture.context_tokens:
        raise ContextTooLong(
            f"engine.max_model_len is {config.max_model_len:,}; the model has {architecture.context_tokens:,}. "
            "Set it to at most that, or leave it out."
        )
    context = config.max_model_len or architecture.context_tokens
    lengths = np.asarray(prompt_tokens, dtype=np.int64)
    rows = np.sort(np.minimum(lengths[lengths < context] + max_new_tokens, context))[::-1]
    max_model_len = config.max_model_len or (int(rows[0]) if rows.size else min(context, 32))
    sequences = config.max_num_seqs or max(1, min(DEFAULT_SEQUENCES[engine], rows.size))
    if engine == "llama_cpp":
        cells = sequences * -(-max_model_len // LLAMA_CPP_PADDING) * LLAMA_CPP_PADDING
        return EnginePlan(max_model_len, sequences, cells * architecture.kv_bytes_per_token, cells, context)
    if config.kv_cache_bytes is None and device_memory_bytes is None:
        return EnginePlan(max_model_len, sequences, None, None, context)
    part = _one_device(architecture, config.tensor_parallel_size)
    block_bytes = part.kv_bytes_per_token * config.block_size
    blocks_per_row = -(-rows // config.block_size)
    if config.kv_cache_bytes is None:
        wanted = max(int(blocks_per_row[:sequences].sum()), _blocks(max_model_len, config)) + 1
        blocks = min(wanted, _affordable_bytes(part, sequences, config, device_memory_bytes or 0) // block_bytes)
    else:
        blocks = config.kv_cache_bytes // block_bytes
    _refuse_too_small(blocks, block_bytes, max_model_len, config, device_memory_bytes)
    fitting = max(1, int(np.searchsorted(np.cumsum(blocks_per_row), blocks, side="right")))
    return EnginePlan(
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs or min(sequences, fitting),
        kv_cache_bytes=blocks * block_bytes,
        kv_cache_tokens=int(blocks / _blocks(max_model_len, config) * max_model_len),
        context_tokens=context,
    )


def _one_device(architecture: Architecture, devices: int) -> Architecture:
    """What one of several GPUs holds: its share of weights and heads; a head that cannot be shared is repeated."""
    return replace(
        architecture,
        kv_heads=max(1, architecture.kv_heads // devices),
        intermediate=architecture.intermediate // devices,
        weight_bytes=architecture.weight_bytes // devices,
    )


def _blocks(tokens: int, config: EngineConfig) -> int:
    return -(-tokens // config.block_size)


def _affordable_bytes(architecture: Architecture, sequences: int, config: EngineConfig, device_bytes: int) -> int:
    width = 4 * architecture.hidden + 3 * architecture.intermediate
    step = config.max_num_batched_tokens * width * architecture.dtype_bytes + sequences * architecture.vocabulary * 8
    return max(0, int(device_bytes * config.device_memory_share) - architecture.weight_bytes - step)


def _refuse_too_small(
    blocks: int, block_bytes: int, max_model_len: int, config: EngineConfig, device_memory_bytes: int | None
) -> None:
    needed = _blocks(max_model_len, config)
    if blocks < needed:
        have = f"{blocks * block_bytes:,} bytes" + (
            f" of a {device_memory_bytes:,}-byte device"
            if config.kv_cache_bytes is None
            else " (engine.kv_cache_bytes)"
        )
        raise EngineMemoryTooSmall(
            f"One row of {max_model_len:,} tokens needs {needed * block_bytes:,} bytes of KV cache; there are {have}. "
            "Lower engine.max_model_len or generation.max_new_tokens, or use a smaller variant or a larger device."
        )
