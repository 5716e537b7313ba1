import pyarrow.parquet as pq
import pytest

from llm_assets.demo import rows
from llm_assets.demo.text_to_sql import COLUMNS


@pytest.fixture
def written(tmp_path):
    rows.write_inputs(tmp_path, rows_per_file=400)
    return tmp_path


def test_training_rows_are_dirty_on_purpose(written):
    table = pq.read_table(written / "rows")
    assert table.column_names == list(COLUMNS)
    records = table.to_pylist()
    assert sum(not row["sql_prompt"] for row in records) > 0
    assert sum(not row["sql"] for row in records) > 0
    repeats = len(records) - len({tuple(row.values()) for row in records})
    assert 0.01 < repeats / len(records) < 0.06


def test_questions_carry_no_answers_and_differ_between_partitions(written):
    batches = [pq.read_table(written / "questions" / f"{key}.parquet") for key in rows.QUESTION_PARTITIONS]
    assert all(batch.column_names == list(rows.QUESTION_COLUMNS) for batch in batches)
    ids = [value for batch in batches for value in batch["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == 3 * rows.QUESTIONS_PER_PARTITION


def test_questions_are_not_among_the_training_rows(written):
    asked = pq.read_table(written / "questions" / "batch_00.parquet")["sql_context"].to_pylist()
    trained = pq.read_table(written / "rows")["sql_context"].to_pylist()
    assert not set(asked) & set(trained)


def test_a_second_run_touches_nothing(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*.parquet")}
    assert rows.write_inputs(written, rows_per_file=400) == []
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*.parquet")} == before


def test_a_damaged_file_is_written_again(written):
    part = written / "rows" / "part_0.parquet"
    good = part.read_bytes()
    part.write_bytes(b"half a file")
    assert rows.write_inputs(written, rows_per_file=400) == [part]
    assert part.read_bytes() == good


def test_new_rows_arrive_as_another_file_of_unseen_rows(written):
    path = rows.append_rows(written / "rows", 50)
    assert path.name == "part_2.parquet"
    seen = set(pq.read_table([written / "rows" / f"part_{n}.parquet" for n in range(2)])["sql_context"].to_pylist())
    new = pq.read_table(path)["sql_context"].to_pylist()
    assert len(new) == 50
    assert not seen & set(new)


def test_the_command_writes_under_the_home_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path))
    rows.main(["--rows-per-file", "20"])
    rows.main(["--rows-per-file", "20"])
    assert (tmp_path / "sql_demo" / "questions" / "batch_02.parquet").exists()
    assert "up to date" in capsys.readouterr().out
