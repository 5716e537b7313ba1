"""A deployed Dagster behind a real web server: started once, spoken to through its GraphQL interface alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llm_assets import DataConfig, run_fine_tuning, run_inference
from llm_assets.components.published import without_passwords
from llm_assets.interface.arguments import ArgumentsInvalid
from llm_assets.interface.deployed import (
    DiffersFromDeployed,
    NotDeployed,
    RemoteRunFailed,
    differences,
    pending,
    refuse_differences,
)
from llm_assets.interface.graphql import DagsterAPI, DagsterUnreachable, RemoteAsset
from llm_assets.registry.tracking_store import TrackingStore

PROJECT = Path(__file__).parents[2]
SETTINGS = """\
run_coordinator: { module: dagster._core.run_coordinator, class: DefaultRunCoordinator }
telemetry: { enabled: false }
"""


@pytest.fixture(scope="session")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, registry: TrackingStore, engine_python: str
) -> Iterator[tuple[str, Path]]:
    """URL and home of a web server with one lineage."""
    directory = tmp_path_factory.mktemp("deployment")
    (directory / "dagster.yaml").write_text(SETTINGS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(directory),
        "LLM_ASSETS_HOME": str(directory / "home"),
        "LLM_ASSETS_ENGINE_PYTHON": engine_python,
        "MLFLOW_TRACKING_URI": registry.tracking_uri,
        "PYTHONPATH": str(PROJECT),
        "PYTHONWARNINGS": "ignore",
    }
    project = Path(__file__).with_name("deployed_project.py")
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-f", str(project)]
    with (directory / "webserver.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/server_info", server, directory / "webserver.log")
        yield url, directory
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not answers(url):
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the web server did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture
def dagster_url(home: Path, deployment: tuple[str, Path]) -> str:
    return deployment[0]


def test_a_deployed_lineage_is_made_and_told_and_a_second_call_makes_only_what_changed(dagster_url, deployment):
    lines = []
    done = run_fine_tuning(
        training_table_name="prod.sql.examples",
        model_name="prod.sql.orders",
        base_model="qwen2_5_3b_instruct",
        data_config=DataConfig(format={"type": "text_to_sql"}),
        lora_config={"rank": 8},
        trigger_remote=True,
        dagster_url=dagster_url,
        log=lines.append,
    )
    assert (done.model_name, done.model_version, done.champion_version) == ("prod.sql.orders", "3", "3")
    assert (done.training_loss, done.evaluation_loss) == (0.25, 0.5)
    assert done.links["run"] == f"{dagster_url}/runs/{done.run_id}"
    assert done.links["version"] == "http://mlflow/3"
    assert any("orders/lora_adapter: making lora_adapter" in line for line in lines)
    assert [line for line in lines if line.startswith("✓")][-1] == "✓ orders/champion"
    assert "version 3" in repr(done)

    lines.clear()
    again = run_fine_tuning(
        model_name="prod.sql.orders", trigger_remote=True, dagster_url=dagster_url, log=lines.append
    )
    assert [line for line in lines if line.startswith("✓")] == ["✓ orders/raw_dataset"]  # the sources are read again
    assert "orders: everything is made and green" in lines
    assert (again.model_version, again.training_loss) == ("3", 0.25)


def test_what_is_stale_or_red_is_made_again_with_everything_below():
    def asset(key, upstream=(), is_current=True):
        return RemoteAsset(key, tuple(upstream), is_made=True, is_current=is_current, metadata={})

    assets = [asset("a"), asset("b", "a", is_current=False), asset("c", "b"), asset("d", "c"), asset("e", "a")]
    assert pending(assets) == ["b", "c", "d"]
    red = {"assetKey": {"path": ["a"]}, "dependencyKeys": [], "staleStatus": "FRESH", "assetMaterializations": []}
    for verdict, current in (("SUCCEEDED", True), ("FAILED", False), (None, False), ("EXECUTION_FAILED", False)):
        execution = verdict and {"status": verdict, "evaluation": {"severity": "ERROR"}}
        node = red | {"assetChecksOrError": {"checks": [{"executionForLatestMaterialization": execution}]}}
        assert RemoteAsset.read(node).is_current is current, verdict


def test_arguments_that_differ_from_the_deployed_lineage_are_refused_by_name(dagster_url):
    with pytest.raises(DiffersFromDeployed) as refused:
        run_fine_tuning(
            training_table_name="prod.sql.other",
            model_name="prod.sql.orders",
            base_model="qwen3_8b",
            lora_config={"rank": 16},
            training_config={"epochs": 3},
            trigger_remote=True,
            dagster_url=dagster_url,
        )
    for difference in (
        "sources[0].table: deployed 'prod.sql.examples', asked 'prod.sql.other'",
        "base_model.hub: deployed 'Qwen/Qwen2.5-3B-Instruct', asked 'Qwen/Qwen3-8B'",
        "training.rank: deployed 8, asked 16",
        "training.epochs: deployed None, asked 3",
    ):
        assert difference in str(refused.value)


def test_a_lineage_that_is_not_deployed_is_named_with_those_that_are(dagster_url):
    with pytest.raises(NotDeployed, match=r"no lineage that registers 'support'. Lineages there: orders"):
        run_fine_tuning(model_name="support", trigger_remote=True, dagster_url=dagster_url)


def test_inference_runs_on_the_deployment_with_the_same_result(dagster_url, questions, tmp_path):
    output, lines = tmp_path / "answers.parquet", []
    done = run_inference(
        input_source=str(questions),
        model_name="prod.sql.orders",
        output_table=str(output),
        variant="gguf_q8_0",
        max_new_tokens=3,
        trigger_remote=True,
        dagster_url=dagster_url,
        log=lines.append,
    )
    assert (done.rows, done.answered_rows, done.model_version) == (6, 6, "1")
    assert (done.value("max_new_tokens"), done.origin("max_new_tokens")) == (3, "explicit")
    assert (done.value("stop"), done.origin("stop")) == ([";"], "registered version")
    assert done.origin("max_model_len") == "planner"
    assert pq.read_table(output)["completion"].to_pylist() == done.table()["completion"].to_pylist()
    assert any("6 to ask" in line for line in lines)


def test_a_failed_run_is_an_error_with_its_reason_and_page(dagster_url):
    with pytest.raises(RemoteRunFailed, match=r"orders/answer_table failed: .*No model 'orders' is registered.*/runs/"):
        run_inference(input_source="gone.parquet", model_name="orders", trigger_remote=True, dagster_url=dagster_url)


def test_a_data_frame_cannot_be_sent_to_a_deployment(dagster_url, questions):
    with pytest.raises(ArgumentsInvalid, match="Write it to a table or file there"):
        run_inference(
            input_source=pq.read_table(questions), model_name="orders", trigger_remote=True, dagster_url=dagster_url
        )


def test_a_server_that_is_not_there_or_not_named_is_told_with_what_to_do(home):
    with pytest.raises(DagsterUnreachable, match=r"127.0.0.1:9/graphql does not answer.*correct dagster_url"):
        run_fine_tuning(model_name="orders", trigger_remote=True, dagster_url="http://127.0.0.1:9")
    with pytest.raises(DagsterUnreachable, match="set LLM_ASSETS_DAGSTER_URL"):
        run_fine_tuning(model_name="orders", trigger_remote=True)


def test_differences_are_found_at_any_depth():
    deployed = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": "x"}
    assert list(differences({"a": {"b": 1}}, deployed)) == []
    assert list(differences({"a": {"c": [1, {"d": 3}]}, "e": "y"}, deployed)) == [("a.c[1].d", 3, 2), ("e", "y", "x")]
    assert list(differences({"a": {"c": [1]}}, deployed)) == [("a.c", [1], [1, {"d": 2}])]


def test_passwords_and_signatures_are_no_difference_and_in_no_message():
    deployed = without_passwords(
        {"model": "m", "sources": [{"path": "https://me:hunter2@host/rows.parquet?sig=hunter2"}]}
    )
    assert "hunter2" not in str(deployed) and "me:" not in str(deployed)
    same = {"sources": [{"path": "https://me:hunter2@host/rows.parquet?sig=hunter2"}]}
    refuse_differences(without_passwords(same), deployed)
    other = {"sources": [{"path": "https://me:hunter2@host/others.parquet?v=2&X-Amz-Signature=hunter2"}]}
    with pytest.raises(
        DiffersFromDeployed, match=r"asked 'https://host/others.parquet\?v=2&X-Amz-Signature=…'"
    ) as told:
        refuse_differences(without_passwords(other), deployed)
    assert "hunter2" not in str(told.value)


def test_a_login_in_the_url_becomes_a_header_and_is_in_no_message(home):
    api = DagsterAPI.resolve("http://me:hunt%40er2@127.0.0.1:9/")
    assert (api.url, api.authorization) == ("http://127.0.0.1:9", "Basic bWU6aHVudEBlcjI=")  # me:hunt@er2
    with pytest.raises(DagsterUnreachable, match="Connection refused") as refused:
        api.jobs()
    assert "hunt" not in str(refused.value) + repr(api) and "bWU6" not in repr(api)
