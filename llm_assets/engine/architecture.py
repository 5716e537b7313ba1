"""The few numbers of a transformer that decide its KV cache, read from a checkpoint without loading it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError

DTYPE_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


FOREIGN_CACHES = ("kv_lora_rank", "mamba_d_state", "ssm_state_size", "linear_num_key_heads")


class ArchitectureUnsupported(LLMAssetsError):
    """A checkpoint whose KV cache is not one key and one value per token, layer and head."""


class ModelUnreadable(LLMAssetsError):
    """A model file is truncated or not what its name says."""


class ModelFilesMissing(LLMAssetsError):
    """The directory of a task holds no model of the kind its engine loads."""


@dataclass(frozen=True)
class Architecture:
    """Shape of a decoder: what one token costs in the KV cache and what one step costs in activations.

    Attributes:
        layers: Decoder layers.
        kv_heads: Key-value heads per layer.
        head_dim: Elements per head.
        hidden: Width of the residual stream.
        intermediate: Width of the feed-forward layer.
        vocabulary: Rows of the output head.
        context_tokens: Positions the model was trained for.
        dtype_bytes: Bytes of one activation.
        kv_dtype_bytes: Bytes of one cached element.
        weight_bytes: Size of the weight files.
    """

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    context_tokens: int
    dtype_bytes: int
    kv_dtype_bytes: int
    weight_bytes: int

    @property
    def kv_bytes_per_token(self) -> int:
        """One key and one value vector per layer and KV head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype_bytes


def read_architecture(model: Path, dtype: str = "auto") -> Architecture:
    """Read the architecture of a Hugging Face directory or a GGUF file.

    Args:
        model: Directory with `config.json`, a `.gguf` file, or a directory that holds one.
        dtype: Activation type, `auto` for the checkpoint's own.

    Raises:
        ModelFilesMissing: neither `config.json` nor a `.gguf` file is there.
        ModelUnreadable: the GGUF file is damaged.
        ArchitectureUnsupported: latent or recurrent attention, whose cache is no plain key-value cache.
    """
    if model.suffix == ".gguf" or not (model / "config.json").exists():
        return _from_gguf(gguf_file(model))
    return _from_config(json.loads((model / "config.json").read_text()), model, dtype)


def gguf_file(model: Path) -> Path:
    """The GGUF file at or in `model`.

    Raises:
        ModelFilesMissing: there is none.
    """
    files = [model] if model.suffix == ".gguf" and model.exists() else sorted(model.glob("*.gguf"))
    if not files:
        raise ModelFilesMissing(
            f"{model} holds neither a config.json nor a .gguf file. Point the task at a published model directory."
        )
    return files[0]


def _from_config(config: Mapping[str, Any], model: Path, dtype: str) -> Architecture:
    text = {**config, **(config.get("text_config") or {})}
    foreign = [name for name in FOREIGN_CACHES if name in text]
    if foreign or "num_hidden_layers" not in text:
        raise ArchitectureUnsupported(
            f"{model}/config.json describes no plain key-value cache ({', '.join(foreign) or 'no num_hidden_layers'}). "
            "Use a decoder with key-value attention, such as Llama, Qwen2 or Mistral."
        )
    heads = int(text["num_attention_heads"])
    dtype_name = dtype if dtype != "auto" else str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
    dtype_bytes = _engine_dtype_bytes(dtype_name, forced=dtype != "auto")
    quantization = text.get("quantization_config") or {}
    return Architecture(
        layers=int(text["num_hidden_layers"]),
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        hidden=int(text["hidden_size"]),
        intermediate=int(text.get("intermediate_size") or 4 * text["hidden_size"]),
        vocabulary=int(text["vocab_size"]),
        context_tokens=int(text.get("max_position_embeddings") or 2048),
        dtype_bytes=dtype_bytes,
        kv_dtype_bytes=1 if quantization.get("kv_cache_scheme") else dtype_bytes,
        weight_bytes=sum(file.stat().st_size for file in model.glob("*.safetensors")),
    )


def _engine_dtype_bytes(dtype: str, forced: bool) -> int:
    # vLLM's `auto` serves float32 checkpoints in 16 bits: vllm/config/model.py, `_resolve_auto_dtype`.
    return 2 if dtype in ("float32", "float") and not forced else DTYPE_BYTES[dtype]


def _from_gguf(path: Path) -> Architecture:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
    except ValueError as error:
        raise ModelUnreadable(f"{path} is no whole GGUF file: {error}. Materialize the variant again.") from error
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    prefix = fields["general.architecture"]
    heads = int(fields[f"{prefix}.attention.head_count"])
    hidden = int(fields[f"{prefix}.embedding_length"])
    vocabulary = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight").shape[-1]
    return Architecture(
        layers=int(fields[f"{prefix}.block_count"]),
        kv_heads=int(fields.get(f"{prefix}.attention.head_count_kv", heads)),
        head_dim=int(fields.get(f"{prefix}.attention.key_length", hidden // heads)),
        hidden=hidden,
        intermediate=int(fields[f"{prefix}.feed_forward_length"]),
        vocabulary=int(vocabulary),
        context_tokens=int(fields[f"{prefix}.context_length"]),
        dtype_bytes=2,
        kv_dtype_bytes=2,
        weight_bytes=path.stat().st_size,
    )
