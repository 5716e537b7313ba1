"""New content starts one ingestion, equal content none, and a failed run reaches the webhook."""

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.automation.sensors import (
    ALERT_WEBHOOK_VARIABLE,
    build_failure_sensor,
    build_new_data_sensor,
    default_sensor_status,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.jsonl", "1")
    return tmp_path


def write(path: Path, text: str, age_seconds: float = 60) -> None:
    path.write_text(text)
    written_at = time.time() - age_seconds
    os.utime(path, (written_at, written_at))


def tick(folder: Path, cursor: str | None) -> tuple[list[str], str | None]:
    sensor = build_new_data_sensor("m", [str(folder / "*.jsonl")], "ingest")
    result = sensor(dg.build_sensor_context(cursor=cursor))
    if isinstance(result, dg.SkipReason):
        return [], cursor
    assert isinstance(result, dg.SensorResult)
    return [str(request.run_key) for request in result.run_requests or []], result.cursor


def test_new_content_starts_one_run(folder):
    keys, cursor = tick(folder, None)
    again, _ = tick(folder, cursor)

    assert len(keys) == 1
    assert again == []


def test_a_crash_before_the_cursor_is_kept_asks_for_the_same_run_key(folder):
    assert tick(folder, None)[0] == tick(folder, None)[0]


def test_a_touched_file_with_equal_content_starts_nothing(folder):
    _, cursor = tick(folder, None)
    write(folder / "a.jsonl", "1", age_seconds=30)

    assert tick(folder, cursor)[0] == []


def test_content_that_returns_to_an_earlier_state_is_ingested_again(folder):
    first, cursor = tick(folder, None)
    write(folder / "a.jsonl", "2", age_seconds=50)
    second, cursor = tick(folder, cursor)
    write(folder / "a.jsonl", "1", age_seconds=40)
    third, _ = tick(folder, cursor)

    assert len({*first, *second, *third}) == 3


def test_a_file_that_is_still_being_written_waits(folder):
    write(folder / "b.jsonl", "half", age_seconds=0)

    assert tick(folder, None) == ([], None)


def test_no_matching_file_is_a_skip_with_the_pattern(tmp_path):
    sensor = build_new_data_sensor("m", [str(tmp_path / "*.csv")], "ingest")
    result = sensor(dg.build_sensor_context())

    assert isinstance(result, dg.SkipReason)
    assert "No file matches" in str(result.skip_message)


def test_a_directory_is_watched_for_every_file_of_rows_in_it(folder):
    sensor = build_new_data_sensor("m", [str(folder)], "ingest")
    first = sensor(dg.build_sensor_context())
    assert isinstance(first, dg.SensorResult) and first.cursor is not None
    assert list(json.loads(first.cursor)["files"]) == [str(folder / "a.jsonl")]


def test_files_at_a_url_are_watched_without_being_fetched(monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    settled = datetime.now(UTC) - timedelta(minutes=1)

    def put(text: str) -> None:
        memory.pipe("/watched/a.jsonl", text.encode())
        memory.store["/watched/a.jsonl"].modified = settled + timedelta(seconds=len(text))

    def seen(cursor: str | None) -> tuple[int, str | None]:
        sensor = build_new_data_sensor("m", ["memory://watched/*.jsonl"], "ingest")
        result = sensor(dg.build_sensor_context(cursor=cursor))
        assert isinstance(result, dg.SensorResult)
        return len(result.run_requests or []), result.cursor

    put("1")
    monkeypatch.setattr(type(memory), "_open", lambda *_args, **_kwargs: pytest.fail("the file was fetched"))
    runs, cursor = seen(None)
    again, cursor = seen(cursor)
    monkeypatch.undo()
    put("22")
    changed, _ = seen(cursor)

    assert (runs, again, changed) == (1, 0, 1)


@pytest.mark.parametrize(("value", "status"), [("running", "RUNNING"), ("stopped", "STOPPED"), (None, "STOPPED")])
def test_automation_runs_only_where_the_environment_says_so(monkeypatch, value, status):
    monkeypatch.delenv("LLM_ASSETS_AUTOMATION", raising=False)
    if value:
        monkeypatch.setenv("LLM_ASSETS_AUTOMATION", value)

    assert default_sensor_status().value == status


def test_a_failed_run_is_posted_with_its_step_and_reason(monkeypatch):
    received: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args): ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(ALERT_WEBHOOK_VARIABLE, f"http://127.0.0.1:{server.server_port}/")

    @dg.asset
    def broken():
        raise ValueError("the disk is made of cheese")

    with dg.instance_for_test() as instance:
        result = dg.materialize([broken], instance=instance, raise_on_error=False)
        event = result.get_run_failure_event()
        context = dg.build_run_status_sensor_context(
            sensor_name="run_failure_alert",
            dagster_event=event,
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        build_failure_sensor()(context)
    server.shutdown()

    assert received[0]["run_id"] == result.run_id
    assert received[0]["steps"] == ["broken"]
