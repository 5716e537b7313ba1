"""Fine-tuning: the base model, an adapter trained on packed rows, the search for its settings, and the merge."""

from llm_assets.training.base_model import BaseModelConfig
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.study_config import StudyConfig
from llm_assets.training.training_config import TrainingConfig

__all__ = ["BaseModelConfig", "MergeConfig", "StudyConfig", "TrainingConfig"]
