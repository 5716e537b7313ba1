import pytest

from llm_assets.training.curves import Curves, CurvesTarget, CurvesUnavailable, recorded


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    return CurvesTarget(uri, MlflowClient(tracking_uri=uri).create_experiment("tiny"), "adapter", {"asset": "a"})


def run_of(target, run_id):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=target.tracking_uri).get_run(run_id)


def test_a_continued_run_goes_on_in_its_mlflow_run(target, tmp_path):
    with pytest.raises(RuntimeError), recorded(target, tmp_path, {"rank": 4}, lambda _: None) as first:
        first.report(1, {"loss": 3.0})
        raise RuntimeError
    assert run_of(target, first.run_id).info.status == "FAILED"
    with recorded(target, tmp_path, {"rank": 4}, lambda _: None) as second:
        second.report(2, {"loss": 2.0})
    run = run_of(target, second.run_id)
    assert second.run_id == first.run_id
    assert (run.info.status, run.data.metrics["loss"], run.data.params["rank"]) == ("FINISHED", 2.0, "4")


def test_a_run_is_nested_under_its_parent(target, tmp_path):
    nested = CurvesTarget(target.tracking_uri, target.experiment_id, "trial", parent_run_id="abc")
    with recorded(nested, tmp_path, {}, lambda _: None) as curves:
        pass
    assert run_of(target, curves.run_id).data.tags["mlflow.parentRunId"] == "abc"


def test_a_server_that_is_not_there_is_refused_before_training(tmp_path):
    (tmp_path / "file").touch()
    target = CurvesTarget(f"sqlite:///{tmp_path}/file/mlflow.db", "0", "adapter")
    refused = pytest.raises(CurvesUnavailable, match=r"Start the tracking server, correct MLFLOW_TRACKING_URI, or set")
    with refused, recorded(target, tmp_path, {}, lambda _: None):
        pass


def test_a_server_that_fails_later_costs_its_points_and_one_line(target, tmp_path):
    from mlflow import MlflowClient

    said = []
    curves = Curves(MlflowClient(tracking_uri=target.tracking_uri), "no such run", said.append)
    curves.report(1, {"loss": 3.0, "learning_rate": 0.1})
    curves.close("FINISHED")
    assert curves.lost_points == 2
    assert len(said) == 1
    assert said[0].startswith("MLflow did not answer, points from here on are lost")


def test_nothing_is_recorded_without_a_target(tmp_path):
    with recorded(None, tmp_path, {}, lambda _: None) as curves:
        curves.report(1, {"loss": 3.0})
    assert curves.run_id == ""
    assert not list(tmp_path.iterdir())
