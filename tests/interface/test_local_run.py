"""A call runs on a real instance: a failure names step and reason, and leaves a run to look at."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_assets import run_fine_tuning
from llm_assets.components.lineage import LineageConfig
from llm_assets.interface import local_dagster
from llm_assets.interface.lineage_jobs import read_lineage, reconstructable
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


def test_a_password_of_a_source_is_in_nothing_that_dagster_keeps_of_a_job(home, tmp_path):
    from dagster._serdes import serialize_value

    blocks = {"model": "m", "sources": [{"database": "postgres://u:hunter2@h/db", "table": "t"}]}
    config = LineageConfig.model_validate(
        {**blocks, "format": {"type": "auto"}, "base_model": {"catalog": "qwen2_5_3b_instruct"}}
    )
    job_file = tmp_path / "job.json"
    job_file.write_text(json.dumps({"lineage": config.model_dump_json(exclude_unset=True)}))
    assert "hunter2" not in serialize_value(reconstructable(job_file, "m_train").get_python_origin())
    assert read_lineage(job_file) == config


def test_an_interrupt_leaves_no_process_of_the_run_behind(home, tmp_path, monkeypatch):
    """The run's process ignores the interrupt and has a child of its own; both are gone."""
    monkeypatch.setattr(local_dagster, "INTERRUPT_SECONDS", 0.2)
    stubborn = "trap '' INT; sleep 600 & echo $!; wait"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **named: popen(["bash", "-c", stubborn], **named))
    output = tmp_path / "output.log"
    with pytest.raises(KeyboardInterrupt), local_dagster._process(tmp_path / "job.json", output) as process:
        while not output.read_text().strip():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL
    state = Path(f"/proc/{output.read_text().strip()}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
