"""The device a variant is for: named in the YAML, or found on this machine.

Known GPUs are one table by their usual short name, so that a laptop can plan and refuse for a GPU it does not have.
"""

import difflib
import os
import platform
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from llm_assets.core import Config, LLMAssetsError

GIB = 1024**3
UNTOLD = (  # words of a driver's name that say nothing about what runs on a card
    "nvidia", "geforce", "tesla", "gpu", "sxm2", "sxm4", "sxm5", "sxm6", "pcie", "nvl", "hbm2", "hbm3", "hbm3e",
    "generation", "blackwell", "server", "workstation", "edition",
)  # fmt: skip


class UnknownHardware(LLMAssetsError):
    """A GPU name that is in no table."""


class Hardware(Config):
    """One device: what decides whether a number format runs on it, and how much fits."""

    name: str = Field(description="Short name, such as H200 or the CPU's model.")
    device: Literal["cuda", "cpu"] = Field(description="Kind of device.")
    memory_bytes: int = Field(gt=0, description="Memory of one device; the machine's RAM for a CPU.")
    compute_capability: float | None = Field(default=None, description="CUDA compute capability; none for a CPU.")

    def described(self) -> str:
        """The device with its article and capability: `an RTX A5000 (8.6)`."""
        if self.compute_capability is None:
            return f"a CPU ({self.name})"
        return f"{'an' if self.name[0] in 'AHLRM' else 'a'} {self.name} ({self.compute_capability})"


def _gpu(name: str, memory_gib: int, compute_capability: float) -> Hardware:
    return Hardware(name=name, device="cuda", memory_bytes=memory_gib * GIB, compute_capability=compute_capability)


# Capabilities: https://developer.nvidia.com/cuda-gpus ; memory: the data sheet's figure of one card.
known_gpus: dict[str, Hardware] = {
    gpu.name: gpu
    for gpu in (
        _gpu("V100", 32, 7.0),
        _gpu("T4", 16, 7.5),
        _gpu("A100 40GB", 40, 8.0),
        _gpu("A100", 80, 8.0),
        _gpu("A10G", 24, 8.6),
        _gpu("A10", 24, 8.6),
        _gpu("A40", 48, 8.6),
        _gpu("RTX A5000", 24, 8.6),
        _gpu("RTX A6000", 48, 8.6),
        _gpu("RTX 3090", 24, 8.6),
        _gpu("L4", 24, 8.9),
        _gpu("L40S", 48, 8.9),
        _gpu("RTX 6000 Ada", 48, 8.9),
        _gpu("RTX 4090", 24, 8.9),
        _gpu("H100", 80, 9.0),
        _gpu("H200", 141, 9.0),
        _gpu("B200", 180, 10.0),
        _gpu("RTX 5090", 32, 12.0),
        _gpu("RTX PRO 6000", 96, 12.0),
    )
}


class HardwareConfig(Config):
    """The `hardware` block of a lineage: the GPU that will run the variants, when it is not this one."""

    target: str | None = Field(default=None, description="Name of a known GPU, such as H200; none means this machine.")

    @field_validator("target")
    @classmethod
    def _known(cls, target: str | None) -> str | None:
        try:
            return target and find_gpu(target).name
        except UnknownHardware as error:
            raise ValueError(str(error)) from None


def find_gpu(name: str) -> Hardware:
    """A known GPU by name, with or without its memory; vendor and case do not matter (`NVIDIA H200`, `a100_80gb`).

    Raises:
        UnknownHardware: lists the known names, the closest first.
    """
    by_key = {_key(f"{known} {gpu.memory_bytes // GIB}GB"): gpu for known, gpu in known_gpus.items()}
    by_key |= {_key(known): gpu for known, gpu in known_gpus.items()}
    if _key(name) in by_key:
        return by_key[_key(name)]
    closest = dict.fromkeys(by_key[key].name for key in difflib.get_close_matches(_key(name), by_key, n=2))
    hint = f" Did you mean {' or '.join(closest)}?" if closest else ""
    raise UnknownHardware(
        f"hardware.target {name!r} is not a known GPU.{hint} Known: {', '.join(known_gpus)}. "
        "Leave hardware.target out to use the device of this machine."
    )


def _key(name: str) -> str:
    words = re.sub(r"[-_]", " ", name.lower()).split()
    return " ".join(word for word in words if word not in UNTOLD)


def detect_hardware() -> Hardware:
    """The first CUDA device of this process, else this machine's CPU with all its RAM."""
    import torch

    if not torch.cuda.is_available():
        return Hardware(name=_cpu_model(), device="cpu", memory_bytes=_ram_bytes())
    properties = torch.cuda.get_device_properties(0)
    return Hardware(
        name=properties.name.removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("Tesla "),
        device="cuda",
        memory_bytes=properties.total_memory,
        compute_capability=float(f"{properties.major}.{properties.minor}"),
    )


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine() or "unknown"


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
