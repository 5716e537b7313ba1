"""GGUF files for llama.cpp, written tensor by tensor from the merged safetensors; one tensor is in memory at a time.

The `gguf` package can write F16, Q8_0 and Q4_0, not the K-quants; Q4_0 therefore keeps embeddings and head at Q8_0.
Only architectures whose every tensor is accounted for here are written, the rest are refused by name.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.core import LLMAssetsError
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.gguf_tokenizer import add_tokenizer

ARCHITECTURES = {"LlamaForCausalLM": "LLAMA", "Qwen2ForCausalLM": "QWEN2"}
ELEMENT_TYPES = {"gguf_f16": "F16", "gguf_q8_0": "Q8_0", "gguf_q4_0": "Q4_0"}


class ArchitectureUnsupported(LLMAssetsError):
    """The model's architecture or one of its settings has no GGUF writer here."""


def refuse_unfit_model(merged: Path, config: QuantizationConfig) -> None:
    """Refuse before any work what the writer cannot express: architecture, RoPE scaling, row widths.

    Raises:
        ArchitectureUnsupported: names the offending setting and what to use instead.
    """
    settings = json.loads((merged / "config.json").read_text())
    use = "Use a vLLM scheme such as w4a16."
    architecture = (settings.get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise ArchitectureUnsupported(f"{config.scheme} covers {', '.join(ARCHITECTURES)}, not {architecture}. {use}")
    rope_type = _rope(settings).get("rope_type", "default")
    if rope_type not in ("default", "llama3"):
        raise ArchitectureUnsupported(f"{config.scheme} covers RoPE types default and llama3, not {rope_type}. {use}")
    for width in ("hidden_size", "intermediate_size"):
        if config.weights_per_scale and settings[width] % config.weights_per_scale:
            raise ArchitectureUnsupported(
                f"{config.scheme} shares one scale over {config.weights_per_scale} weights, "
                f"but {width} is {settings[width]}. Use gguf_f16."
            )


def write_gguf(merged: Path, out: Path, config: QuantizationConfig, log: Callable[[str], None]) -> Path:
    """Write `<out>/<name>.gguf` with weights, tokenizer and chat template, and return its path.

    Args:
        merged: Hugging Face directory of a Llama or Qwen2 model in 16 or 32 bits.
        out: Existing directory.
        config: A `gguf_*` variant.
        log: Receives a line every few tensors.
    """
    import gguf

    settings = json.loads((merged / "config.json").read_text())
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[settings["architectures"][0]]]
    path = out / f"{config.asset_name}.gguf"
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True)
    _add_settings(writer, settings, config)
    add_tokenizer(writer, merged, settings["vocab_size"])
    names = gguf.get_tensor_name_map(architecture, settings["num_hidden_layers"])
    written = 0
    for name, weights in _tensors(merged, settings):
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ArchitectureUnsupported(f"{name} has no place in a GGUF {architecture.name} file. Use w4a16.")
        kind = _element_type(target, weights, config)
        data = gguf.quants.quantize(_permuted(name, weights, settings, architecture.name), kind)
        writer.add_tensor(target, data, raw_dtype=kind)
        written += 1
        if written % 50 == 0:
            log(f"{config.asset_name}: {written} tensors written")
    for name, factors in _rope_factors(settings).items():
        writer.add_tensor(name, factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    log(f"{config.asset_name}: {written} tensors, {path.stat().st_size:,} bytes")
    return path


def _add_settings(writer: Any, settings: dict[str, Any], config: QuantizationConfig) -> None:
    import gguf

    heads = settings["num_attention_heads"]
    head_dim = settings.get("head_dim") or settings["hidden_size"] // heads
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{ELEMENT_TYPES[config.scheme]}"))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(settings["vocab_size"])
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(settings.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(_rope(settings).get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])


def _rope(settings: dict[str, Any]) -> dict[str, Any]:
    """RoPE settings; transformers 5 calls them `rope_parameters`, older checkpoints spread them over two keys."""
    older = {"rope_theta": settings.get("rope_theta", 10000.0), **(settings.get("rope_scaling") or {})}
    return settings.get("rope_parameters") or older


def _tensors(merged: Path, settings: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every stored tensor as float32, by name; a tied head is left out, llama.cpp reuses the embedding."""
    from safetensors import safe_open

    for shard in sorted(merged.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                if name == "lm_head.weight" and settings.get("tie_word_embeddings"):
                    continue
                yield name, tensors.get_tensor(name).float().numpy()


def _element_type(target: str, weights: np.ndarray, config: QuantizationConfig) -> Any:
    import gguf

    if weights.ndim < 2:
        return gguf.GGMLQuantizationType.F32
    if config.scheme == "gguf_q4_0" and target in ("token_embd.weight", "output.weight"):
        return gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType[ELEMENT_TYPES[config.scheme]]


def _permuted(name: str, weights: np.ndarray, settings: dict[str, Any], architecture: str) -> np.ndarray:
    """Reorder Llama's query and key rows from half-split to interleaved RoPE pairs, as llama.cpp rotates them.

    per head, rows 0 1 2 3 (half-split pairs (0,2) (1,3))  ->  0 2 1 3
    """
    heads = {
        "q_proj": settings["num_attention_heads"],
        "k_proj": settings.get("num_key_value_heads") or settings["num_attention_heads"],
    }
    module = name.split(".")[-2]
    if architecture != "LLAMA" or module not in heads:
        return weights
    halves = weights.reshape(heads[module], 2, -1, *weights.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weights.shape)


def _rope_factors(settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """Llama 3.1's frequency factors, shape `(head_dim / 2,)`, by `_compute_llama3_parameters` of transformers."""
    rope = _rope(settings)
    if rope.get("rope_type") != "llama3":
        return {}
    head_dim = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths > context / low, factor, np.where(wavelengths < context / high, 1.0, between))
    return {"rope_freqs.weight": factors.astype(np.float32)}
