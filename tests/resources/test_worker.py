"""The worker as assets are handed it: the same process under Dagster, and a pod where there is a cluster."""

import shutil
from types import SimpleNamespace

import dagster as dg
import pytest

from llm_assets.engine.job import EngineEnvironmentMissing
from llm_assets.engine.tasks import (
    EngineConfig,
    GenerationConfig,
    GenerationTask,
    read_answers,
    read_engine_report,
    write_requests,
)
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.gguf_model import write_gguf
from llm_assets.resources.worker import Worker, WorkerMisconfigured

GENERATION, ENGINE = GenerationConfig(max_new_tokens=4), EngineConfig(threads=1)


@pytest.fixture(scope="module")
def gguf(tiny_base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("gguf")
    shutil.copy(tiny_base / "tokenizer.json", directory)
    write_gguf(tiny_base, directory, QuantizationConfig(scheme="gguf_f16"), lambda _: None)
    return directory


@pytest.fixture
def tasks(gguf, tmp_path):
    made = []
    for name in ("a", "b"):
        write_requests(tmp_path / f"{name}.parquet", ["x", "y"], [[5, 6], [7, 8]])
        made.append(GenerationTask(name, gguf, "llama_cpp", tmp_path / f"{name}.parquet", tmp_path / name))
    return made


def materialize(tasks, worker, **run):
    @dg.asset(
        partitions_def=dg.StaticPartitionsDefinition(["p", "q", "r"]), backfill_policy=dg.BackfillPolicy.multi_run(8)
    )
    def answered(context: dg.AssetExecutionContext, worker: Worker) -> dg.MaterializeResult:
        worker.generate(context, tasks, GENERATION, ENGINE)
        return dg.MaterializeResult()

    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize([answered], instance=instance, resources={"worker": worker}, raise_on_error=False, **run)
    lines = [entry.user_message + str(entry.dagster_event or "") for entry in instance.all_logs(result.run_id)]
    return result, lines


def test_a_range_of_partitions_is_answered_by_one_process(tasks):
    both = {"dagster/asset_partition_range_start": "p", "dagster/asset_partition_range_end": "q"}
    result, lines = materialize(tasks, Worker(), tags=both)
    assert result.success
    assert [sorted(read_answers(task.output)["row_id"].to_pylist()) for task in tasks] == [["x", "y"]] * 2
    assert {read_engine_report(task.output)["engine_start"] for task in tasks} == {1}
    assert any(line.startswith("a: done") for line in lines)


def test_only_the_asset_reports_a_materialization(tasks):
    result, _ = materialize(tasks, Worker(), partition_key="p")
    assert len(result.asset_materializations_for_node("answered")) == 1


def test_a_failing_worker_fails_the_step_with_its_traceback_in_the_log(tasks):
    tasks[0].output.mkdir()
    (tasks[0].output / "part-00000.parquet").write_text("no answers")
    result, lines = materialize(tasks, Worker(), partition_key="p")
    assert not result.success
    assert any("Parquet magic bytes not found" in line for line in lines)


def test_no_tasks_are_no_work():
    Worker().generate(dg.build_asset_context(), [], GENERATION, ENGINE)


def test_a_missing_engine_environment_is_refused_before_any_work(tasks, tmp_path):
    worker = Worker(python=str(tmp_path / "nowhere/python"))
    with pytest.raises(EngineEnvironmentMissing, match=r"nowhere/python.*make engine-env"):
        worker.require()
    with pytest.raises(EngineEnvironmentMissing):
        worker.generate(dg.build_asset_context(), tasks, GENERATION, ENGINE)
    assert not tasks[0].output.exists()


def test_a_pod_without_an_image_is_refused():
    with pytest.raises(WorkerMisconfigured, match="LLM_ASSETS_ENGINE_IMAGE"):
        Worker(backend="kubernetes").require()


def test_a_pod_gets_the_same_command_and_paths_only(tasks, monkeypatch):
    import dagster_k8s

    asked = {}

    def run(_self, **arguments):
        asked.update(arguments)
        return SimpleNamespace(get_results=lambda **_: ())

    monkeypatch.setattr(dagster_k8s.PipesK8sClient, "run", run)
    gpu = {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
    worker = Worker(backend="kubernetes", image="registry/engine:1", namespace="llm", pod_spec=gpu)
    worker.generate(dg.build_asset_context(), tasks, GENERATION, ENGINE)

    assert asked["command"] == ["python", "-m", "llm_assets.workers.generate", str(tasks[0].output / "job.json")]
    assert (asked["image"], asked["namespace"], asked["pod_wait_timeout"]) == ("registry/engine:1", "llm", 0)
    built = {name: asked[name] for name in ("image", "command", "base_pod_spec")}
    pod = dagster_k8s.pipes.build_pod_body("engine", env_vars=asked["env"], base_pod_meta=None, **built)
    assert pod.spec.termination_grace_period_seconds == 300
    assert pod.spec.containers[0].resources.limits == {"nvidia.com/gpu": "1"}
    assert "PYTHONPATH" not in asked["env"]
    assert '"parent_pid": null' in (tasks[0].output / "job.json").read_text()
