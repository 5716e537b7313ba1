"""llm_assets: a Dagster asset graph that fine-tunes, quantizes, registers, evaluates and runs your own LLM.

`from llm_assets import run_fine_tuning, get_model_info, run_inference` is what a notebook needs; each name is loaded
when it is first used, because a worker or a code server that imports this package needs none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_assets.data import CurationConfig, SplitConfig, TokenizationConfig
    from llm_assets.evaluation import EvaluationConfig
    from llm_assets.interface.arguments import DataConfig, LoraConfig
    from llm_assets.interface.fine_tuning import FineTuningResult, run_fine_tuning
    from llm_assets.interface.inference import InferenceResult, run_inference
    from llm_assets.interface.model_info import ModelInfo, get_model_info
    from llm_assets.quantization import QuantizationConfig
    from llm_assets.training import StudyConfig, TrainingConfig
    from llm_assets.training.catalog import base_models

_MODULES = {
    "CurationConfig": "llm_assets.data",
    "DataConfig": "llm_assets.interface.arguments",
    "EvaluationConfig": "llm_assets.evaluation",
    "FineTuningResult": "llm_assets.interface.fine_tuning",
    "InferenceResult": "llm_assets.interface.inference",
    "LoraConfig": "llm_assets.interface.arguments",
    "ModelInfo": "llm_assets.interface.model_info",
    "QuantizationConfig": "llm_assets.quantization",
    "SplitConfig": "llm_assets.data",
    "StudyConfig": "llm_assets.training",
    "TokenizationConfig": "llm_assets.data",
    "TrainingConfig": "llm_assets.training",
    "base_models": "llm_assets.training.catalog",
    "get_model_info": "llm_assets.interface.model_info",
    "run_fine_tuning": "llm_assets.interface.fine_tuning",
    "run_inference": "llm_assets.interface.inference",
}

__all__ = [
    "CurationConfig",
    "DataConfig",
    "EvaluationConfig",
    "FineTuningResult",
    "InferenceResult",
    "LoraConfig",
    "ModelInfo",
    "QuantizationConfig",
    "SplitConfig",
    "StudyConfig",
    "TokenizationConfig",
    "TrainingConfig",
    "base_models",
    "get_model_info",
    "run_fine_tuning",
    "run_inference",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Public names, for completion in a notebook."""
    return sorted(__all__)
