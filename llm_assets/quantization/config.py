"""What one quantized variant is: its number format, how it is calibrated and how much quality it must keep.

The default floors are per scheme, from published recoveries of 8B models; a variant below its floor blocks the lineage.
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config

Scheme = Literal[
    "fp8_dynamic",
    "fp8_static",
    "int8_w8a8",
    "w4a16",
    "nvfp4",
    "nvfp4a16",
    "mxfp4",
    "gguf_f16",
    "gguf_q8_0",
    "gguf_q4_0",
]

# FP8: arXiv 2411.02355 ("lossless"); W8A8 and W4A16: model cards of the RedHatAI Llama-3.1-8B series; NVFP4:
# arXiv 2509.23202 (93.8-99 %). MXFP4 follows NVFP4; the GGUF floors are judgement, no published figure was found.
DEFAULT_MIN_RECOVERY: dict[str, float] = {
    "fp8_dynamic": 0.99,
    "fp8_static": 0.99,
    "int8_w8a8": 0.98,
    "w4a16": 0.96,
    "nvfp4": 0.95,
    "nvfp4a16": 0.95,
    "mxfp4": 0.95,
    "gguf_f16": 0.995,
    "gguf_q8_0": 0.995,
    "gguf_q4_0": 0.97,
}


class QuantizationConfig(Config):
    """One entry of a lineage's `quantization` list; it becomes the asset `<model>/quantized/<name>`."""

    scheme: Scheme = Field(description="Number format of weights and activations.")
    name: str | None = Field(default=None, description="Last part of the asset key; the scheme when left out.")
    method: Literal["gptq", "awq"] | None = Field(
        default=None,
        description="How w4a16 rounds: gptq (default) corrects errors column by column, awq scales salient channels.",
    )
    group_size: Literal[32, 64, 128] | None = Field(
        default=None,
        description="Weights that share one scale in w4a16 (default 128); must divide every layer's input width.",
    )
    kv_cache: Literal["fp8"] | None = Field(
        default=None, description="Also calibrate an 8-bit KV cache: twice the tokens in the same memory. vLLM only."
    )
    calibration_rows: int = Field(
        default=128, ge=1, le=4096, description="Training rows whose activations set the scales."
    )
    min_recovery: float | None = Field(
        default=None, gt=0, le=1, description="Share of the merged model's next-token accuracy to keep; by scheme."
    )
    recovery_rows: int = Field(default=256, ge=8, description="Held-out rows that recovery is measured on, at most.")
    load_prompts: int = Field(default=8, ge=1, le=64, description="Held-out prompts answered when it is loaded.")
    load_tokens: int = Field(default=32, ge=1, le=256, description="Tokens generated per prompt when it is loaded.")
    seed: int = Field(default=0, ge=0, description="Seed of the calibration rows, the held-out rows and the bootstrap.")

    @property
    def asset_name(self) -> str:
        """Last part of the asset key."""
        return self.name or self.scheme

    @property
    def weight_method(self) -> str:
        """How weights are rounded: gptq, awq, or rtn (to nearest)."""
        if self.scheme == "w4a16":
            return self.method or "gptq"
        return "gptq" if self.scheme == "int8_w8a8" else "rtn"

    @property
    def weights_per_scale(self) -> int | None:
        """Weights along an input dimension that share a scale; none for one scale per channel or tensor."""
        fixed = {"nvfp4": 16, "nvfp4a16": 16, "mxfp4": 32, "gguf_q8_0": 32, "gguf_q4_0": 32}
        return self.group_size or 128 if self.scheme == "w4a16" else fixed.get(self.scheme)

    @property
    def recovery_floor(self) -> float:
        """The recovery below which the variant blocks."""
        return self.min_recovery or DEFAULT_MIN_RECOVERY[self.scheme]

    @property
    def engine(self) -> Literal["vllm", "llama_cpp"]:
        """The engine that runs the variant."""
        return "llama_cpp" if self.scheme.startswith("gguf_") else "vllm"

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are measured; the other schemes round weights alone and take seconds."""
        return self.scheme in ("fp8_static", "int8_w8a8", "w4a16", "nvfp4") or self.kv_cache is not None

    @model_validator(mode="after")
    def _refuse_settings_without_effect(self) -> Self:
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.asset_name):
            raise ValueError(f"name {self.name!r} cannot be part of an asset key. Use letters, digits and _ only.")
        for setting, value in {"method": self.method, "group_size": self.group_size}.items():
            if value is not None and self.scheme != "w4a16":
                raise ValueError(f"{setting}: {value} has no effect on {self.scheme}. Remove it, or use scheme: w4a16.")
        if self.kv_cache and self.engine != "vllm":
            raise ValueError(
                f"kv_cache: {self.kv_cache} cannot be stored in {self.scheme}; llama.cpp chooses it at start. "
                "Remove kv_cache, or use a vLLM scheme such as w4a16."
            )
        return self
