"""The device a run trains on, and what it cannot do: refused before anything is loaded.

Peaks are those of dense bfloat16 products with float32 sums (float16 where a card has no bfloat16), as the maker's data
sheet states them; a card that is not listed gets no utilisation figure rather than a guessed one.
"""

import os
import platform
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid

# TFLOP/s without sparsity, from NVIDIA's data sheets of each card (SXM form factor where there are several).
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "V100": 125.0,
    "T4": 65.0,
}
BFLOAT16_CAPABILITY = FLASH_CAPABILITY = 8.0  # Ampere: CUDA C++ Programming Guide, Compute Capabilities; flash-attn
NF4_CAPABILITY = 6.0  # Pascal: bitsandbytes' installation guide


@dataclass(frozen=True)
class TrainingDevice:
    """One device.

    Attributes:
        kind: `cuda` or `cpu`.
        name: As the driver reports it.
        memory_bytes: All of its memory; the machine's for a CPU.
        compute_capability: Of a CUDA device, such as 8.6.
    """

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    compute_capability: float | None = None

    @property
    def peak_flops(self) -> float | None:
        """Operations per second at best; None where the card is not in the table."""
        words = self.name.replace("-", " ").split()
        for card, tflops in PEAK_TFLOPS.items():
            if all(part in words for part in card.split()) and "PCIe" not in words:
                return tflops * 1e12
        return None


def this_device() -> TrainingDevice:
    """The first CUDA device where there is one, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return TrainingDevice("cpu", platform.machine(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    capability = float(f"{found.major}.{found.minor}")
    return TrainingDevice("cuda", found.name, found.total_memory, capability)


def refuse_unsupported(config: TrainingConfig, device: TrainingDevice) -> None:
    """Raise for a setting this device cannot train with.

    Raises:
        TrainingConfigInvalid: the first such setting, with what to set instead.
    """
    problem = _wrong_dtype(config, device) or _wrong_method(config, device) or _missing_package(config, device)
    if problem:
        raise TrainingConfigInvalid(problem)


def _wrong_dtype(config: TrainingConfig, device: TrainingDevice) -> str | None:
    if device.kind == "cpu" and config.compute_dtype == "float16":
        return "training.compute_dtype float16 does not train on a CPU. Use bfloat16."
    if config.compute_dtype == "bfloat16" and (device.compute_capability or 99) < BFLOAT16_CAPABILITY:
        return (
            f"training.compute_dtype bfloat16 needs compute capability {BFLOAT16_CAPABILITY} (Ampere); this GPU is "
            f"{device.name} ({device.compute_capability}). Use float16."
        )
    return None


def _wrong_method(config: TrainingConfig, device: TrainingDevice) -> str | None:
    if config.method == "qlora" and (device.compute_capability or 99) < NF4_CAPABILITY:
        return (
            f"training.method qlora needs compute capability {NF4_CAPABILITY} (Pascal); this GPU is {device.name} "
            f"({device.compute_capability}). Use lora."
        )
    if config.optimizer == "paged_adamw_8bit" and device.kind == "cpu":
        return "training.optimizer paged_adamw_8bit pages between a GPU and its host; here is no GPU. Use adamw."
    return None


def _missing_package(config: TrainingConfig, device: TrainingDevice) -> str | None:
    for option in ("liger", "compile"):
        if getattr(config, option) and device.kind == "cpu":
            return f"training.{option} needs a CUDA device; this machine has none. Set training.{option} false."
    if config.liger and find_spec("liger_kernel") is None:
        return "training.liger needs the package liger-kernel. Install it (pip install liger-kernel) or set it false."
    if config.attention == "flash_attention_2" and device.kind == "cuda":
        if find_spec("flash_attn") is None:
            return "training.attention flash_attention_2 needs the package flash-attn. Install it, or use auto."
        if (device.compute_capability or 99) < FLASH_CAPABILITY or config.compute_dtype == "float32":
            return (
                f"training.attention flash_attention_2 needs compute capability {FLASH_CAPABILITY} and 16 bit; this is "
                f"{device.name} ({device.compute_capability}) with {config.compute_dtype}. Use auto."
            )
    unknown = [name for name in config.report_to if name != "mlflow" and name not in reporting_integrations()]
    if unknown:
        known = ", ".join(["mlflow", *reporting_integrations()])
        return f"training.report_to names {', '.join(unknown)}, not installed here. Install it, or use any of: {known}."
    return None


def reporting_integrations() -> list[str]:
    """Names transformers can report to here, MLflow excepted: the project reports to that itself."""
    from transformers.integrations import get_available_reporting_integrations

    return sorted(name for name in get_available_reporting_integrations() if name != "mlflow")
