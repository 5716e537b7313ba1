"""What decides the trials of a study, as one digest: with the same digest the study published before is used again."""

from pathlib import Path

from llm_assets.training import identity
from llm_assets.training.study_config import StudyConfig
from llm_assets.training.training_config import TrainingConfig

NOT_DECIDING = frozenset(
    {
        "evaluate_every_steps", "early_stopping_patience", "max_evaluation_loss", "save_every_steps", "report_to",
        "processes", "sharding",
    }
)  # fmt: skip


def study_inputs(base: Path, dataset: Path, study: StudyConfig, training: TrainingConfig) -> str:
    """Digest of everything that decides a study's trials: the same digest needs no second study."""
    beside = {"storage_url", "parallel_trials", "warm_start", "log_to_mlflow"}
    return identity.settings_digest(
        {
            "dataset": identity.directory_fingerprint(dataset),
            "base": identity.directory_fingerprint(base),
            "study": study.model_dump(mode="json", exclude=beside),
            "training": training.model_dump(mode="json", exclude=set(NOT_DECIDING)),
        }
    )
