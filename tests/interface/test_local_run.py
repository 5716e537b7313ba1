"""A call runs on a real instance: a failure names step and reason, and leaves a run to look at."""

import subprocess
import sys

import pytest

from llm_assets import run_fine_tuning
from llm_assets.interface.local_dagster import LocalRunFailed
from llm_assets.interface.local_instance import (
    OWNER_TAG,
    DagsterHomeInvalid,
    open_instance,
    own_dagster_home,
    release_killed_runs,
)


def test_a_failing_step_is_one_error_with_its_reason_and_a_run_in_the_ui(home, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_ASSETS_PRELOAD", "")  # two steps run; neither needs the training stack
    (tmp_path / "base").mkdir()
    lines = []
    with pytest.raises(LocalRunFailed, match=r"little/(raw_dataset|base_model) failed: ") as failed:
        run_fine_tuning(
            training_table_name="rows.jsonl",
            model_name="dev.sql.little",
            base_model=str(tmp_path / "base"),
            data_config={"format": {"type": "alpaca"}},
            log=lines.append,
        )
    with open_instance() as instance:
        (run,) = instance.get_runs()
        assert (run.job_name, run.status.value) == ("little_train", "FAILURE")
        assert run.run_id in str(failed.value)
    assert any(line.startswith("✗ little/raw_dataset failed") and "no file at rows.jsonl" in line for line in lines)
    assert any(line.startswith("✗ little/base_model failed") and "has no config.json" in line for line in lines)
    assert not list((home / "interface" / "little").glob("job-*"))


def test_without_dagster_home_runs_go_where_make_dev_shows_them(home):
    with open_instance() as instance:
        assert instance.root_directory == str(home / "dagster")
        assert instance.get_settings("concurrency")["pools"] == {"default_limit": 1, "granularity": "op"}
    assert own_dagster_home() == home / "dagster_home"


def test_a_dagster_home_that_is_no_directory_is_refused(home, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    with pytest.raises(DagsterHomeInvalid, match="Create it, or unset the variable"):
        open_instance()


def test_a_run_whose_process_is_gone_gives_its_gpu_slot_back(home):
    import dagster as dg

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with open_instance() as instance:

        @dg.asset(pool="gpu")
        def adapter() -> None: ...

        job = dg.Definitions(assets=[adapter]).resolve_implicit_global_asset_job_def()
        run = instance.create_run_for_job(job, tags={OWNER_TAG: str(gone.pid)}, status=dg.DagsterRunStatus.STARTED)
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        instance.event_log_storage.claim_concurrency_slot("gpu", run.run_id, "adapter")
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 1
        assert release_killed_runs(instance) == [run.run_id]
        assert instance.event_log_storage.get_concurrency_info("gpu").active_slot_count == 0
        assert instance.get_run_by_id(run.run_id).status.value == "FAILURE"
