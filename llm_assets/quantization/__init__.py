"""Quantized variants of the merged model: number formats, the hardware they need, and how much quality they keep."""

from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.hardware import Hardware, HardwareConfig

__all__ = ["Hardware", "HardwareConfig", "QuantizationConfig"]
