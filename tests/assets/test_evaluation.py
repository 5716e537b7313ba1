"""The evaluation asset on published artifacts; the engine's place is taken by transformers, except in one test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from published_lineage import PublishedLineage, publish_lineage, upstream_of_evaluation

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.evaluation import BEATS_BASE, KEEP_QUALITY, build_evaluation
from llm_assets.engine.job import EngineEnvironmentMissing, engine_python
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask
from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.evaluate import read_scoreboard
from llm_assets.evaluation.hf_generation import generate_with_transformers
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.worker import Worker

LINEAGE = Lineage("orders")
CONFIG = EvaluationConfig(
    metrics=("sql_execution", "exact_match"), generation=GenerationConfig(max_new_tokens=6), resamples=200
)


class TransformersWorker(Worker):
    """Answers with transformers, so that this needs no engine environment."""

    tokenizer: str

    def require(self) -> None:
        """Nothing is needed."""

    def generate(
        self, context: Any, tasks: Sequence[GenerationTask], generation: GenerationConfig, engine: EngineConfig
    ) -> None:
        for task in tasks:
            generate_with_transformers(
                task.model, task.requests, task.output, tokenizer=Path(self.tokenizer), config=generation, log=print
            )


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    return publish_lineage(tiny_base, tmp_path_factory.mktemp("lineage"))


def evaluate(published: PublishedLineage, home: Path, worker: Worker) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [*upstream_of_evaluation(LINEAGE, published), build_evaluation(LINEAGE, CONFIG, ["gguf_q8_0"])],
        instance=dg.DagsterInstance.ephemeral(),
        resources={"store": ArtifactStore(root=str(home)), "worker": worker, "hardware": HardwareResource()},
        raise_on_error=False,
    )


@pytest.fixture(scope="module")
def run(published: PublishedLineage, tmp_path_factory: pytest.TempPathFactory) -> dg.ExecuteInProcessResult:
    worker = TransformersWorker(tokenizer=str(published.tokenized / "tokenizer"))
    return evaluate(published, tmp_path_factory.mktemp("store"), worker)


def metadata_of(run: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = run.asset_materializations_for_node("orders__evaluation")
    return {name: value.value for name, value in event.metadata.items()}


def test_the_page_shows_scoreboard_picture_and_plain_numbers(run: dg.ExecuteInProcessResult):
    metadata = metadata_of(run)
    assert metadata["rows"] == 6 and isinstance(metadata["merged_execution_accuracy"], float)
    assert [record.data["candidate"] for record in metadata["scoreboard"].records] == ["base", "merged", "gguf_q8_0"]
    assert "data:image/png;base64," in metadata["quality_against_size"]
    assert metadata["pareto_front"] == "gguf_q8_0"


def test_a_model_no_better_than_its_base_fails_the_blocking_check(run: dg.ExecuteInProcessResult):
    checks = {check.check_name: check for check in run.get_asset_check_evaluations()}
    assert not checks[BEATS_BASE].passed and checks[BEATS_BASE].severity == dg.AssetCheckSeverity.ERROR
    assert checks[KEEP_QUALITY].severity == dg.AssetCheckSeverity.WARN
    assert not run.success


def test_the_artifact_is_published_even_so(run: dg.ExecuteInProcessResult):
    board = read_scoreboard(Path(metadata_of(run)["path"]))
    assert list(board["candidates"]) == ["base", "merged", "gguf_q8_0"]


def test_without_an_engine_environment_nothing_is_begun(published: PublishedLineage, tmp_path: Path):
    result = evaluate(published, tmp_path, Worker(python=str(tmp_path / "none")))
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "make engine-env" in str(failure.step_failure_data.error)
    assert not (tmp_path / ".work").exists()


def test_base_and_merged_run_in_vllm_and_the_gguf_variant_in_llama_cpp(published: PublishedLineage, tmp_path: Path):
    try:
        engine_python()
    except EngineEnvironmentMissing as missing:
        pytest.skip(str(missing))
    run = evaluate(published, tmp_path, Worker())
    candidates = read_scoreboard(Path(metadata_of(run)["path"]))["candidates"]
    engines = {name: line["engine"] for name, line in candidates.items()}
    assert engines == {"base": "vllm", "merged": "vllm", "gguf_q8_0": "llama_cpp"}
    assert all(line["error_share"] == 0 and line["tokens_per_second"] > 0 for line in candidates.values())
