"""What is compared: the base, the merged model and every variant, each on the engine it will be served by.

A variant whose format this machine's engine has no kernel for is scored with transformers instead, and says so: quality
is comparable, speed is not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm_assets.core import LLMAssetsError
from llm_assets.evaluation.scoreboard import BASE, MERGED
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.hardware import Hardware
from llm_assets.quantization.support import Placement, placement


class WeightsMissing(LLMAssetsError):
    """A candidate's directory holds no weights."""


@dataclass(frozen=True)
class Candidate:
    """One model of the comparison.

    Attributes:
        name: `base`, `merged`, or the variant's name.
        directory: Its weights.
        engine: What answers for it.
        reason: Why it is not the engine it is made for; empty when it is.
    """

    name: str
    directory: Path
    engine: Literal["vllm", "llama_cpp", "transformers"]
    reason: str = ""

    def weight_bytes(self) -> int:
        """Bytes of the weights on disk.

        Raises:
            WeightsMissing: there are none.
        """
        files = [*self.directory.glob("*.safetensors"), *self.directory.glob("*.gguf")]
        if not files:
            raise WeightsMissing(
                f"{self.directory} holds no *.safetensors or *.gguf file. Materialize the asset of {self.name} again."
            )
        return sum(file.stat().st_size for file in files)


def list_candidates(base: Path, merged: Path, variants: Mapping[str, Path], hardware: Hardware) -> list[Candidate]:
    """Base, merged, then the variants in their given order."""
    plain = [Candidate(BASE, base, "vllm"), Candidate(MERGED, merged, "vllm")]
    return plain + [_variant(name, directory, hardware) for name, directory in variants.items()]


def _variant(name: str, directory: Path, hardware: Hardware) -> Candidate:
    made = json.loads((directory / "quantization.json").read_text())
    settings = {key: made.get(key) or None for key in ("scheme", "kv_cache")}
    verdict = placement(QuantizationConfig.model_validate(settings), hardware)
    if verdict.where is Placement.RUNS_HERE:
        return Candidate(name, directory, made["engine"])
    return Candidate(name, directory, "transformers", verdict.reason)
