"""Answers in a Parquet file or a DuckDB table: once per row, version and variant, in one step."""

from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.catalogs import CatalogUnknown
from llm_assets.inference.destination import Destination, DestinationInvalid, merge_answers, refuse_unfit


@pytest.fixture
def answers(tmp_path):
    """Write answers of one version, as a run leaves them."""

    def write(version, completions, **extra):
        rows = [
            {
                "row_id": row_id,
                "completion": text,
                "model_name": "m",
                "model_version": version,
                "variant": "merged",
                **extra,
            }
            for row_id, text in completions.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    return write


@pytest.fixture(params=["answers.parquet", "w.duckdb::answers", "w.duckdb::sales.answers"])
def output(request, tmp_path):
    """A destination of each kind, and how a reader sees it."""
    destination = Destination.parse(str(tmp_path / request.param))

    def read():
        if destination.table is None:
            return pq.read_table(destination.file).to_pylist()
        with duckdb.connect(str(destination.file)) as connection:
            return connection.sql(f"SELECT * FROM {destination.table}").to_arrow_table().to_pylist()

    return destination, read


def seen(rows):
    return sorted((row["row_id"], row["model_version"], row["completion"]) for row in rows)


def test_answering_again_replaces_the_answers_of_that_version(answers, output):
    destination, read = output
    assert merge_answers(answers("1", {"a": "old", "b": "old"}), destination) == 2
    assert merge_answers(answers("1", {"b": "new", "c": "new"}), destination) == 3
    assert seen(read()) == [("a", "1", "old"), ("b", "1", "new"), ("c", "1", "new")]


def test_answers_of_other_versions_stay(answers, output):
    destination, read = output
    merge_answers(answers("1", {"a": "one"}), destination)
    merge_answers(answers("2", {"a": "two"}), destination)
    assert seen(read()) == [("a", "1", "one"), ("a", "2", "two")]


def test_a_new_column_is_added(answers, output):
    destination, read = output
    merge_answers(answers("1", {"a": "one"}), destination)
    merge_answers(answers("2", {"a": "two"}, city="Bonn"), destination)
    assert sorted((row["model_version"], row["city"]) for row in read()) == [("1", None), ("2", "Bonn")]


def test_a_table_of_a_catalog_is_found_through_the_mapping(tmp_path, monkeypatch):
    (tmp_path / "catalogs.yaml").write_text(f"prod: {{ database: {tmp_path}/w.duckdb }}")
    monkeypatch.setenv("LLM_ASSETS_CATALOGS", str(tmp_path / "catalogs.yaml"))
    assert Destination.parse("prod.sales.answers") == Destination(tmp_path / "w.duckdb", "sales.answers")
    with pytest.raises(CatalogUnknown, match="Known catalogs: prod"):
        Destination.parse("dev.sales.answers")


@pytest.mark.parametrize("wrong", ["answers.csv", "s3://bucket/answers.parquet", "w.duckdb::a b", "answers"])
def test_what_cannot_be_written_is_refused_with_what_can(wrong):
    with pytest.raises(DestinationInvalid, match=r"answers.parquet.*warehouse.duckdb::main.answers"):
        Destination.parse(wrong)


def test_a_damaged_output_is_refused_and_left_as_it_is(answers, tmp_path):
    (tmp_path / "answers.parquet").write_text("no parquet")
    with pytest.raises(DestinationInvalid, match="cannot take the answers"):
        merge_answers(answers("1", {"a": "one"}), Destination(tmp_path / "answers.parquet"))
    assert (tmp_path / "answers.parquet").read_text() == "no parquet"


def test_a_table_of_other_columns_is_refused_and_left_as_it_is(answers, tmp_path):
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("CREATE TABLE answers (row_id INTEGER)")
    with pytest.raises(DestinationInvalid, match="choose another output"):
        merge_answers(answers("1", {"a": "one"}), Destination(tmp_path / "w.duckdb", "answers"))
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        assert [row[0] for row in connection.execute("DESCRIBE answers").fetchall()] == ["row_id"]


def test_a_value_that_the_column_would_change_is_refused(answers, output):
    destination, read = output
    merge_answers(answers("1", {"a": "one"}, price=3), destination)
    with pytest.raises(DestinationInvalid, match=r"column price is BIGINT, theirs is DOUBLE, and 1.7 would be changed"):
        merge_answers(answers("1", {"b": "two"}, price=1.7), destination)
    merge_answers(answers("1", {"b": "two"}, price=4.0), destination)
    assert sorted(row["price"] for row in read()) == [3, 4]


def test_a_table_of_something_else_gets_no_answers(answers, tmp_path):
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("CREATE TABLE orders AS SELECT 1 AS id")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "orders.parquet")
    for destination in (Destination(tmp_path / "w.duckdb", "orders"), Destination(tmp_path / "orders.parquet")):
        with pytest.raises(DestinationInvalid, match="holds no answers: it has no column row_id, model_name"):
            refuse_unfit(destination)
        with pytest.raises(DestinationInvalid, match="holds no answers"):
            merge_answers(answers("1", {"a": "one"}), destination)
    refuse_unfit(Destination(tmp_path / "w.duckdb", "new"))


@pytest.mark.parametrize("folder", ["day=2025-01-01", "model_version=7", "prod[1]"])
def test_the_name_of_a_directory_adds_no_column_and_means_no_pattern(answers, tmp_path, folder):
    destination = Destination(tmp_path / folder / "answers.parquet")
    merge_answers(answers("1", {"a": "one"}), destination)
    assert merge_answers(answers("1", {"a": "one", "b": "two"}), destination) == 2
    held = pq.ParquetFile(destination.file).read()
    assert "day" not in held.column_names and set(held["model_version"].to_pylist()) == {"1"}


def test_writers_from_several_homes_lose_no_row(tmp_path):
    files = []
    for writer in range(4):
        rows = [
            {"row_id": f"{writer}-{row}", "model_name": "m", "model_version": "1", "variant": "merged"}
            for row in range(500)
        ]
        files.append(tmp_path / f"{writer}.parquet")
        pq.write_table(pa.Table.from_pylist(rows), files[-1])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda file: merge_answers(file, Destination(tmp_path / "answers.parquet")), files))
    assert pq.ParquetFile(tmp_path / "answers.parquet").metadata.num_rows == 2000
