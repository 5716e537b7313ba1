"""What every training test starts from: a tokenized dataset, quick settings, and one adapter trained on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenized_by_hand import write_dataset

from llm_assets.training.training_config import TrainingConfig


@pytest.fixture(scope="session")
def dataset(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training rows in packs of 256 tokens and 16 validation rows."""
    return write_dataset(tiny_base, tmp_path_factory.mktemp("tokenized_dataset"))


@pytest.fixture
def quick() -> Callable[..., TrainingConfig]:
    """A training config of four steps, with fields replaced by name."""

    def make(**changes: object) -> TrainingConfig:
        settings = {
            "rank": 4,
            "learning_rate": 1e-2,
            "max_steps": 4,
            "batch_packs": 2,
            "accumulation_steps": 1,
            "evaluate_every_steps": 2,
            "save_every_steps": 2,
            "evaluation_rows": 8,
        }
        return TrainingConfig.model_validate({**settings, **changes})

    return make


@pytest.fixture(scope="session")
def adapter(tiny_base: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A QLoRA adapter of 12 steps."""
    from llm_assets.training.trainer import train_adapter

    out, work = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("work")
    config = TrainingConfig(
        rank=4, learning_rate=1e-2, max_steps=12, batch_packs=2, accumulation_steps=1, evaluation_rows=8
    )
    train_adapter(tiny_base, dataset, out, work, config, log=lambda _: None)
    return out
