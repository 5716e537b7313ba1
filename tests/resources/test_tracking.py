import multiprocessing
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from published_lineage import empty_database

from llm_assets import get_model_info
from llm_assets.registry.tracking_store import TrackingStore, TrackingUnavailable, create_database
from llm_assets.registry.versions import VersionUnknown, load_version
from llm_assets.resources.tracking import MLflowTracking


def test_by_default_everything_is_in_the_projects_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path))
    store = MLflowTracking().store()
    assert store == TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/mlartifacts")


def test_a_tracking_server_named_by_the_environment_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    assert MLflowTracking().store().tracking_uri == "http://mlflow.internal:5000"
    assert MLflowTracking(tracking_uri="http://other").store().tracking_uri == "http://other"


def test_a_registry_of_its_own_is_named_by_the_environment_or_the_resource(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks-uc")
    assert MLflowTracking().store().registry_uri == "databricks-uc"
    assert MLflowTracking(registry_uri="databricks-uc://eu").store().registry_uri == "databricks-uc://eu"
    assert MLflowTracking(tracking_uri="http://other").store().registry_uri == "http://other"


def test_talking_to_another_registry_does_not_change_what_the_environment_means(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.internal:5000")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    (tmp_path / "prod.db").write_bytes(empty_database())
    TrackingStore(f"sqlite:///{tmp_path / 'prod.db'}", str(tmp_path)).client()
    assert (
        MLflowTracking().store().tracking_uri == MLflowTracking().store().registry_uri == "http://mlflow.internal:5000"
    )


def test_a_password_in_a_uri_is_not_shown():
    link = MLflowTracking(tracking_uri="http://me:secret@mlflow:5000").link("orders", "3")
    assert link.value == "http://mlflow:5000/#/models/orders/versions/3"


def test_a_version_links_to_its_page_on_a_server_and_to_a_command_without_one():
    served = MLflowTracking(tracking_uri="http://mlflow:5000/").link("orders", "3")
    assert served.value == "http://mlflow:5000/#/models/orders/versions/3"
    assert "mlflow ui --backend-store-uri sqlite:////x.db" in str(
        MLflowTracking(tracking_uri="sqlite:////x.db").link("orders", "3").value
    )


def count_experiments(path: Path, results: "multiprocessing.Queue[int]") -> None:
    client = TrackingStore(f"sqlite:///{path}", str(path.parent / "artifacts")).client()
    results.put(len(client.search_experiments()))


def test_processes_that_touch_a_fresh_database_together_all_succeed(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    children = [context.Process(target=count_experiments, args=(tmp_path / "mlflow.db", results)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert [results.get() for _ in children] == [1, 1, 1]


def test_a_creation_killed_half_way_is_made_anew(tmp_path: Path):
    (tmp_path / "mlflow.db.new").write_bytes(b"half a database")
    create_database(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db.new").exists()
    store = TrackingStore(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "artifacts"))
    experiment = store.client().get_experiment(store.experiment_id(store.client(), "orders"))
    assert experiment.artifact_location == (tmp_path / "artifacts" / "orders").as_uri()
    assert store.experiment_id(store.client(), "orders") == experiment.experiment_id


def test_a_database_that_cannot_be_made_says_what_to_change(tmp_path: Path):
    (tmp_path / "home").write_text("a file where the home should be")
    with pytest.raises(TrackingUnavailable, match=r"mlflow\.db: .*LLM_ASSETS_HOME"):
        create_database(tmp_path / "home" / "mlflow.db")


def test_importing_the_resource_does_not_import_mlflow():
    program = "import sys, llm_assets.resources.tracking, llm_assets.registry.register; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_password_in_the_uri_is_in_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path))
    uri = "http://bob:hunter2@127.0.0.1:9"
    with pytest.raises(MlflowException, match=r"127\.0\.0\.1:9") as failed:
        TrackingStore(uri, "unused").client().search_registered_models()
    told = "".join(traceback.format_exception(failed.value))
    with pytest.raises(TrackingUnavailable, match=r"MLflow at http://127.0.0.1:9 does not answer.*MLFLOW_TRACKING_URI"):
        load_version("orders", "1", uri)
    with pytest.raises(TrackingUnavailable, match="does not answer") as unreachable:
        get_model_info("orders", tracking_uri=uri)
    told += "".join(traceback.format_exception(unreachable.value))
    assert "hunter2" not in told and "bob" not in told


def test_looking_something_up_makes_no_database(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(VersionUnknown, match=r"there is no such file\. Set MLFLOW_TRACKING_URI, or LLM_ASSETS_HOME"):
        get_model_info("orders")
    assert not (tmp_path / "elsewhere").exists()
