"""Reading a partition's rows."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.formats import TextToSQLFormat
from llm_assets.data.ingestion import RowMissingColumn
from llm_assets.data.sources import SourceMissing
from llm_assets.inference.config import InferenceConfig
from llm_assets.inference.inputs import read_partition

FORMAT = TextToSQLFormat()
ROWS = [
    {"id": 1, "sql_context": "create table orders (id integer)", "sql_prompt": "how many orders?"},
    {"id": 2, "sql_context": "create table orders (id integer)", "sql_prompt": "which order is the largest?"},
]


@pytest.fixture
def config(tmp_path):
    return InferenceConfig(inputs=str(tmp_path / "{partition}.*"), partitions={"type": "static", "keys": ["p"]})


def write(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(lines))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))


def read(config, tmp_path):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    report = read_partition("p", config, FORMAT, out, lambda _: None)
    return report, pq.read_table(out / "rows.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "jsonl"])
def test_every_file_format_gives_the_same_questions(config, tmp_path, suffix):
    write(tmp_path / f"p.{suffix}", ROWS)
    report, rows = read(config, tmp_path)
    assert (report.rows, report.refused) == (2, 0)
    assert rows.column_names == ["id", "sql_context", "sql_prompt", "row_id", "messages", "tools", "refused"]
    last = [messages[-1] for messages in rows["messages"].to_pylist()]
    assert [message["role"] for message in last] == ["user", "user"]
    assert "how many orders?" in last[0]["content"]


def test_row_ids_do_not_move_when_rows_come_and_go(config, tmp_path):
    write(tmp_path / "p.parquet", ROWS)
    _, both = read(config, tmp_path)
    write(tmp_path / "p.parquet", ROWS[1:])
    _, one = read(config, tmp_path)
    assert one["row_id"].to_pylist() == both["row_id"].to_pylist()[1:]


def test_a_row_without_a_question_stays_in_with_the_reason(config, tmp_path):
    blank = {**ROWS[0], "sql_prompt": " "}
    write(tmp_path / "p.parquet", [*ROWS, blank])
    report, rows = read(config, tmp_path)
    assert (report.rows, report.refused) == (3, 1)
    assert rows["refused"].to_pylist() == [None, None, "empty_prompt: column sql_prompt is empty"]


def test_equal_rows_give_equal_bytes(config, tmp_path):
    write(tmp_path / "p.parquet", ROWS)
    read(config, tmp_path)
    first = (tmp_path / "out/rows.parquet").read_bytes()
    read(config, tmp_path)
    assert (tmp_path / "out/rows.parquet").read_bytes() == first


def test_a_partition_without_a_file_is_refused(config, tmp_path):
    with pytest.raises(SourceMissing, match=r"'p': no file at"):
        read(config, tmp_path)


def test_a_missing_question_column_is_refused_by_name(config, tmp_path):
    write(tmp_path / "p.parquet", [{"sql_context": "create table orders (id integer)"}])
    with pytest.raises(RowMissingColumn, match="sql_prompt"):
        read(config, tmp_path)
