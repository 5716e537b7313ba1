"""The sizes of a decoder that decide what training it costs, read from `config.json` without loading a weight."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # Phi-3 joins these
MLP = ("gate_proj", "up_proj", "down_proj")


class ShapeUnknown(LLMAssetsError):
    """A config.json does not describe a dense decoder."""


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with gated feed-forward layers, as Llama, Qwen, Mistral, Gemma 2 and Phi-3 are.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Query heads per layer.
        kv_heads: Key-value heads per layer.
        head_dim: Elements per head.
        intermediate: Width of the feed-forward layer.
        vocabulary: Rows of the embedding.
        tied: Whether the output head is the embedding.
        fused: Whether query, key and value are one linear layer, and gate and up another.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False
    fused: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Read a parsed `config.json`.

        Raises:
            ShapeUnknown: a size is missing; names it.
        """
        missing = [
            name
            for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
            if not isinstance(config.get(name), int)
        ]
        if missing:
            raise ShapeUnknown(
                f"config.json of model type {config.get('model_type')} has no {', '.join(missing)}, so its memory "
                "cannot be planned. Use a dense decoder such as Llama, Qwen or Mistral."
            )
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            fused=config.get("model_type") == "phi3",
        )

    @classmethod
    def read(cls, model: Path) -> "ModelShape":
        """Read the `config.json` of a Hugging Face directory."""
        return cls.from_config(json.loads((model / "config.json").read_text()))

    @property
    def query_width(self) -> int:
        """Elements of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Elements of all key heads of a token; as many for values."""
        return self.kv_heads * self.head_dim

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of one decoder layer, by module name."""
        single = {
            "q_proj": (self.hidden, self.query_width),
            "k_proj": (self.hidden, self.key_value_width),
            "v_proj": (self.hidden, self.key_value_width),
            "o_proj": (self.query_width, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }
        if not self.fused:
            return single
        joined = {name: (self.hidden, sum(single[part][1] for part in parts)) for name, parts in FUSED.items()}
        return {**joined, "o_proj": single["o_proj"], "down_proj": single["down_proj"]}

    def targeted(self, modules: str | Sequence[str]) -> dict[str, tuple[int, int]]:
        """Linear layers of one decoder layer that carry an adapter; `all-linear` or module names, paths allowed."""
        linear = self.linear_layers()
        if isinstance(modules, str):
            return linear
        wanted = {name.rsplit(".", 1)[-1] for name in modules}
        return {name: shape for name, shape in linear.items() if name in wanted}

    @property
    def linear_values(self) -> int:
        """Weights of all linear layers but the output head; biases are left out."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linear_layers().values())

    @property
    def embedding_values(self) -> int:
        """Weights of one vocabulary matrix."""
        return self.vocabulary * self.hidden

    @property
    def other_values(self) -> int:
        """Weights outside linear layers: embedding, an untied head, and the norms."""
        return self.embedding_values * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden
