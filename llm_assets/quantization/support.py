"""Which number format runs where: one table of compute capability by scheme and engine, and the refusal read off it.

A scheme is offered where its engine computes in that format. Where vLLM would only unpack the weights to 16 bits (FP8
on Ampere, NVFP4 on Hopper) the variant is refused in favour of a weight-only scheme: what recovery was measured on is
then what runs. The cost is that a deliberate weight-only use of such a checkpoint is not offered.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from llm_assets.core import LLMAssetsError
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.hardware import Hardware


class QuantizationUnsupported(LLMAssetsError):
    """The scheme has no kernel on the hardware it is for."""


class Placement(StrEnum):
    """Where a variant that is made on this machine can be run."""

    RUNS_HERE = "runs_here"
    MAKE_HERE_RUN_THERE = "make_here_run_there"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Support:
    """One row of the table.

    Attributes:
        since: Lowest compute capability with a kernel in this format.
        architecture: NVIDIA's name for that capability.
        below: First capability that has no kernel again; `inf` for none.
        on_cpu: Empty when the engine runs it on a CPU, else why it does not.
        instead: Scheme to use where this one is refused.
    """

    engine: str
    since: float
    architecture: str
    on_cpu: str
    instead: str
    below: float = float("inf")


# Sources of the capabilities, with `get_min_capability` and `is_supported` of vLLM 0.32's kernels:
#   all schemes   https://docs.vllm.ai/projects/llm-compressor/en/0.11.0/steps/choosing-scheme/
#   FP8           https://docs.vllm.ai/en/v0.32.0/features/quantization/llm_compressor/fp8/
#   INT8          https://docs.vllm.ai/en/latest/features/quantization/int8/ ("not supported on >= 10.0")
#   llama.cpp     https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cuda/CMakeLists.txt (dp4a from 6.1)
# The CPU column was tried with vLLM 0.32 and llama.cpp on x86 with AVX-512; a CPU with AMX may run more.
NO_FP8_OP = "vLLM's CPU build has no static FP8 quantization kernel"
NO_FP4 = "vLLM's CPU build has no FP4 kernel"

TABLE: dict[str, Support] = {
    # scheme: engine, compute capability since, its architecture, why not on a CPU, what to use instead
    "fp8_dynamic": Support("vllm", 8.9, "Ada Lovelace", "", "int8_w8a8 or w4a16"),
    "fp8_static": Support("vllm", 8.9, "Ada Lovelace", NO_FP8_OP, "int8_w8a8 or w4a16"),
    "int8_w8a8": Support("vllm", 7.5, "Turing", "", "fp8_dynamic", below=10.0),
    "w4a16": Support("vllm", 7.5, "Turing", "", "gguf_q4_0"),
    "nvfp4": Support("vllm", 10.0, "Blackwell", NO_FP4, "w4a16"),
    "nvfp4a16": Support("vllm", 7.5, "Turing", NO_FP4, "w4a16"),
    "mxfp4": Support("vllm", 10.0, "Blackwell", NO_FP4, "w4a16"),
    "gguf_f16": Support("llama_cpp", 6.1, "Pascal", "", "gguf_q8_0"),
    "gguf_q8_0": Support("llama_cpp", 6.1, "Pascal", "", "gguf_f16"),
    "gguf_q4_0": Support("llama_cpp", 6.1, "Pascal", "", "gguf_q8_0"),
}
KV_CACHE_FP8 = Support("vllm", 8.9, "Ada Lovelace", "", "the same scheme without kv_cache")


class Verdict(NamedTuple):
    """Where a variant runs, why not here when it does not, and which scheme would."""

    where: Placement
    reason: str = ""
    instead: str = ""


def placement(config: QuantizationConfig, hardware: Hardware) -> Verdict:
    """Where the variant runs if `hardware` is the machine at hand.

    A CPU makes every scheme; what its engine cannot run is for a GPU elsewhere (`make_here_run_there`).
    """
    rows = [(config.scheme, TABLE[config.scheme])]
    if config.kv_cache:
        rows.append((f"kv_cache: {config.kv_cache}", KV_CACHE_FP8))
    for what, support in rows:
        capability = hardware.compute_capability
        if capability is None and support.on_cpu:
            return Verdict(Placement.MAKE_HERE_RUN_THERE, support.on_cpu, support.instead)
        if capability is not None and not support.since <= capability < support.below:
            needed = f"needs compute capability {support.since} ({support.architecture})"
            if capability >= support.below:
                needed = f"has no kernel from compute capability {support.below} on"
            reason = f"{what} {needed}; this GPU is {hardware.described()}"
            return Verdict(Placement.UNSUPPORTED, reason, support.instead)
    return Verdict(Placement.RUNS_HERE)


def refuse_unsupported(config: QuantizationConfig, hardware: Hardware) -> None:
    """Refuse a variant before any work when the hardware it is for cannot run it.

    Raises:
        QuantizationUnsupported: states what the scheme needs, what the hardware is and what to use.
    """
    verdict = placement(config, hardware)
    if verdict.where is Placement.UNSUPPORTED:
        raise QuantizationUnsupported(
            f"{verdict.reason}. Use {verdict.instead}, or set hardware.target to the GPU that will run it."
        )
