"""What every training test starts from: a tokenized dataset, quick settings, and one adapter trained on it."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenized_by_hand import write_dataset

from llm_assets.training import elastic
from llm_assets.training.forking import STACK
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


@pytest.fixture(scope="session")
def imported() -> None:
    """Processes are forked from this one then, without an import of their own."""
    for name in STACK:
        importlib.import_module(name)


@pytest.fixture
def train_together(imported: None, tiny_base: Path, dataset: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train into `out-<name>` on the configured processes; returns the report and the published directory."""

    def run(name: str, config: TrainingConfig, log: Any = lambda _: None, **options: Any) -> tuple[Any, Path]:
        out, work = tmp_path / f"out-{name}", tmp_path / f"work-{name}"
        out.mkdir(exist_ok=True)
        return elastic.train(tiny_base, dataset, out, work, config, log=log, **options), out

    return run


@pytest.fixture
def together(quick: Callable[..., TrainingConfig]) -> Callable[..., TrainingConfig]:
    """Quick settings for two processes."""

    def make(**changes: object) -> TrainingConfig:
        return quick(**{"processes": 2, "batch_packs": 2, "accumulation_steps": 2, "report_to": (), **changes})

    return make
