"""The same stages on a CUDA device; skipped, with a message, where there is none."""

from pathlib import Path

import pytest
from tokenized_by_hand import write_dataset

from llm_assets.data.token_files import read_tokens
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests
from llm_assets.quantization.hardware import detect_hardware
from llm_assets.training.isolation import check_isolation
from llm_assets.training.merge import MergeConfig, merge_adapter
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def dataset(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tiny_base, tmp_path_factory.mktemp("tokenized"))


def settings(**changes) -> TrainingConfig:
    quick = {"rank": 4, "learning_rate": 1e-2, "max_steps": 8, "batch_packs": 1, "accumulation_steps": 2}
    return TrainingConfig.model_validate({**quick, "evaluation_rows": 8, **changes})


def test_the_device_is_found_with_its_memory_and_compute_capability():
    hardware = detect_hardware()

    assert hardware.device == "cuda"
    assert hardware.compute_capability >= 7.0
    assert hardware.memory_bytes > 1e9


@pytest.mark.parametrize("attention", ["block_mask", "varlen"])
def test_packed_documents_are_isolated_and_the_loss_falls(tiny_base, dataset, tmp_path, attention):
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    report = train_adapter(
        tiny_base, dataset, tmp_path / "out", tmp_path / "work", settings(attention=attention), log=lambda _: None
    )

    assert check_isolation(report.isolation).passed
    assert report.evaluation_loss < report.base_evaluation_loss


def test_what_is_trained_and_merged_on_the_device_answers_in_its_engine(tiny_base, dataset, tmp_path):
    for name in ("out", "work", "merged"):
        (tmp_path / name).mkdir()
    train_adapter(tiny_base, dataset, tmp_path / "out", tmp_path / "work", settings(), log=lambda _: None)
    merge_adapter(tiny_base, tmp_path / "out", tmp_path / "merged", MergeConfig(), lambda _: None)
    rows = read_tokens(dataset, "test", ["row_id", "input_ids", "prompt_tokens"]).to_pylist()
    prompts = [row["input_ids"][: row["prompt_tokens"]] for row in rows]
    requests = tmp_path / "requests.parquet"
    write_requests(requests, [row["row_id"] for row in rows], prompts)
    task = GenerationTask("gpu", tmp_path / "merged", "vllm", requests, tmp_path / "answers")
    run_tasks(None, [task], GenerationConfig(max_new_tokens=16), EngineConfig(), lambda _: None)

    assert sorted(read_answers(task.output)["row_id"].to_pylist()) == sorted(row["row_id"] for row in rows)
