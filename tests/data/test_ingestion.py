"""Sources are refused before anything is written, and rows keep their ids whatever else is ingested."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.formats import AlpacaFormat, ShareGPTFormat
from llm_assets.data.ingestion import ROWS, RowMissingColumn, ingest
from llm_assets.data.raw_checks import not_empty, schema_holds, sources_complete
from llm_assets.data.source_files import find_files
from llm_assets.data.sources import (
    HubDatasetUnavailable,
    SourceConfig,
    SourceEmpty,
    SourceMissing,
    SourceNameTaken,
    SourceUnreadable,
)


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ingested(tmp_path: Path, *paths: Path | SourceConfig, required: tuple[str, ...] = ("q",)) -> pa.Table:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    sources = [p if isinstance(p, SourceConfig) else SourceConfig(path=str(p)) for p in paths]
    ingest(sources, required, out, log=lambda _: None)
    return pq.read_table(out / ROWS)


def test_all_formats_carry_the_same_rows(tmp_path: Path):
    rows = [{"q": f"what is {n}?", "a": str(n)} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    (tmp_path / "j.json").write_text(json.dumps(rows))
    lines(tmp_path / "l.jsonl", rows)
    (tmp_path / "c.csv").write_text("q,a\n" + "".join(f"{row['q']},{row['a']}\n" for row in rows))
    with gzip.open(tmp_path / "z.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    ids = [
        ingested(tmp_path, tmp_path / name)["row_id"].to_pylist()
        for name in ("p.parquet", "j.json", "l.jsonl", "c.csv", "z.jsonl.gz")
    ]
    assert len({tuple(i) for i in ids}) == 1
    assert len(set(ids[0])) == 5


def test_row_ids_do_not_move_when_rows_columns_and_sources_are_added(tmp_path: Path):
    old = ingested(tmp_path, lines(tmp_path / "a.jsonl", [{"q": "one", "n": 1}, {"q": "two", "n": 2}]))
    more = lines(tmp_path / "b.jsonl", [{"q": "three", "extra": {"x": [1]}, "n": "text"}])
    lines(tmp_path / "a.jsonl", [{"q": "zero", "n": 0}, {"q": "one", "n": 1}, {"q": "two", "n": 2}])
    new = ingested(tmp_path, more, tmp_path / "a.jsonl")
    assert new["row_id"].to_pylist()[-2:] == old["row_id"].to_pylist()


def test_exact_repeats_get_numbered_ids(tmp_path: Path):
    table = ingested(tmp_path, lines(tmp_path / "a.jsonl", [{"q": "one"}, {"q": "two"}, {"q": "one"}, {"q": "one"}]))
    first, second, third, fourth = table["row_id"].to_pylist()
    assert [third, fourth] == [f"{first}-2", f"{first}-3"] and second not in (first, third)
    assert len(set(table["content_hash"].to_pylist())) == 2


def test_columns_are_united_by_name_and_nested_values_become_json_text(tmp_path: Path):
    a = lines(tmp_path / "a.jsonl", [{"q": "one", "turns": [{"role": "user"}], "n": 1}])
    pq.write_table(pa.Table.from_pylist([{"turns": [{"from": "x", "more": None}], "q": "two"}]), tmp_path / "b.parquet")
    table = ingested(tmp_path, a, tmp_path / "b.parquet").to_pylist()
    assert [json.loads(row["turns"]) for row in table] == [[{"role": "user"}], [{"from": "x", "more": None}]]
    assert [row["n"] for row in table] == [1, None]
    assert [row["source"] for row in table] == ["a", "b"]


def test_text_that_looks_like_a_date_or_a_number_stays_as_written(tmp_path: Path):
    (tmp_path / "c.csv").write_text("q,when\n007,2024-01-02\n")
    assert ingested(tmp_path, tmp_path / "c.csv").to_pylist()[0]["q"] == "007"
    a = lines(tmp_path / "a.jsonl", [{"q": "2024-01-02T00:00:00Z"}])
    assert ingested(tmp_path, a)["q"].to_pylist() == ["2024-01-02T00:00:00Z"]


def test_a_column_named_source_keeps_its_values_under_another_name(tmp_path: Path):
    table = ingested(tmp_path, lines(tmp_path / "a.jsonl", [{"q": "one", "source": "web"}])).to_pylist()
    assert (table[0]["source"], table[0]["original_source"]) == ("a", "web")


def test_a_rerun_writes_the_same_bytes_and_keeps_file_order(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"q": f"question {n} " + "x" * (n % 97)} for n in range(30_000)])
    first = ingested(tmp_path, path)
    before = (tmp_path / "out" / ROWS).read_bytes()
    ingested(tmp_path, path)
    assert (tmp_path / "out" / ROWS).read_bytes() == before
    assert [q.split()[1] for q in first["q"].to_pylist()] == [str(n) for n in range(30_000)]


def test_globs_and_directories_are_read_in_the_order_of_their_names(tmp_path: Path):
    for name in ("b", "a"):
        lines(tmp_path / f"{name}.jsonl", [{"q": name}])
    (tmp_path / "readme.txt").write_text("not rows")
    for path in (str(tmp_path / "*.jsonl"), str(tmp_path)):
        assert [f.path.stem for f in find_files([SourceConfig(path=path)])] == ["a", "b"]


def test_a_missing_file_or_an_unmatched_glob_is_refused(tmp_path: Path):
    for path in (tmp_path / "none.jsonl", tmp_path / "*.parquet"):
        with pytest.raises(SourceMissing, match="no file at"):
            ingested(tmp_path, path)


def test_an_empty_source_is_refused(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.csv").write_text("q,a\n")
    (tmp_path / "c.json").write_text("[]")
    for name in ("a.jsonl", "b.csv", "c.json"):
        with pytest.raises(SourceEmpty, match="holds no row"):
            ingested(tmp_path, tmp_path / name)


def test_a_file_without_a_needed_column_is_refused_before_anything_is_written(tmp_path: Path):
    good = lines(tmp_path / "a.jsonl", [{"q": "one"}])
    (tmp_path / "b.csv").write_text("question\none\n")
    with pytest.raises(RowMissingColumn, match=r"b\.csv: no column 'q'.*question"):
        ingested(tmp_path, good, tmp_path / "b.csv")
    assert not (tmp_path / "out" / ROWS).exists()


def test_a_json_row_without_a_needed_key_counts_as_one_with_a_null(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"other": "one"}, {"q": None}, {"q": "three"}])
    assert ingested(tmp_path, path)["q"].to_pylist() == [None, None, "three"]
    with pytest.raises(RowMissingColumn, match=r"a\.jsonl: no column 'sql'. It has: other, q"):
        ingested(tmp_path, path, required=("q", "sql"))


def test_sources_of_one_name_and_unknown_suffixes_are_refused(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", [{"q": "one"}])
    with pytest.raises(SourceNameTaken, match="name of its own"):
        ingested(tmp_path, path, path)
    with pytest.raises(SourceUnreadable, match="Set format"):
        ingested(tmp_path, lines(tmp_path / "rows.data", [{"q": "one"}]))


def test_real_rows_are_ingested_whole(tmp_path: Path, real_rows):
    alpaca, glaive = real_rows("alpaca_en_demo.json"), real_rows("glaive_toolcall_en_demo.json")
    assert ingested(tmp_path, alpaca, required=("instruction", "output")).num_rows == 999
    table = ingested(tmp_path, glaive, required=("conversations",))
    originals = json.loads(glaive.read_text())
    assert [json.loads(c) for c in table["conversations"].to_pylist()] == [row["conversations"] for row in originals]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    ingested(tmp_path, lines(tmp_path / "a.jsonl", [{"q": "one"}, {"q": "two"}, {"q": "one"}]))
    return tmp_path / "out" / ROWS


def rewrite(rows: Path, column: str, values: list[str]) -> Path:
    table = pq.read_table(rows)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, pa.array(values)), rows)
    return rows


def test_schema_passes_on_ingested_rows(rows: Path):
    assert schema_holds(rows, ["q"], ["a"]).passed


def test_schema_fails_on_a_missing_column_a_repeated_id_and_a_foreign_source(rows: Path):
    assert "missing" in schema_holds(rows, ["q", "sql"], ["a"]).summary
    assert not schema_holds(rows, ["q"], ["b"]).passed
    same = pq.read_table(rows)["row_id"].to_pylist()[:1] * 3
    result = schema_holds(rewrite(rows, "row_id", same), ["q"], ["a"])
    assert not result.passed and result.numbers["repeated_row_ids"] == 2


def test_schema_fails_on_ids_of_another_form(rows: Path):
    result = schema_holds(rewrite(rows, "row_id", ["1", "2", "3"]), ["q"], ["a"])
    assert not result.passed and result.rows[0]["column"] == "row_id"


def test_not_empty_fails_without_rows(rows: Path):
    assert not_empty(rows).passed
    pq.write_table(pq.read_table(rows).slice(0, 0), rows)
    assert not not_empty(rows).passed


def test_sources_complete_fails_when_a_source_lost_a_row_or_all(rows: Path):
    assert sources_complete(rows, {"a": 3}).passed
    assert not sources_complete(rows, {"a": 4}).passed
    assert not sources_complete(rows, {"a": 3, "b": 1}).passed
    assert not sources_complete(rows, {}).passed


# --- mixing ----------------------------------------------------------------------------------------------------------


def test_first_rows_takes_that_many_over_all_files_of_a_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"q": "{name}{n}", "a": "x"}}\n' for n in range(5)))
    source = SourceConfig(path=str(tmp_path / "*.jsonl"), first_rows=7, name="s")
    report = ingest([source], ["q", "a"], tmp_path)

    assert report.rows == 7
    assert report.held == {"s": 7}
    assert pq.read_table(tmp_path / ROWS)["q"].to_pylist() == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]


def test_a_source_with_its_own_format_needs_that_formats_columns(tmp_path):
    (tmp_path / "sql.jsonl").write_text('{"q": "x", "a": "y"}\n')
    (tmp_path / "chat.jsonl").write_text('{"instruction": "x", "output": "y"}\n')
    sources = [
        SourceConfig(path=str(tmp_path / "sql.jsonl")),
        SourceConfig(path=str(tmp_path / "chat.jsonl"), row_format=AlpacaFormat()),
    ]

    assert ingest(sources, ["q", "a"], tmp_path).held == {"sql": 1, "chat": 1}
    with pytest.raises(RowMissingColumn, match=r"chat\.jsonl: no column 'conversations'"):
        ingest([sources[0], sources[1].model_copy(update={"row_format": ShareGPTFormat()})], ["q", "a"], tmp_path)


def test_a_hub_dataset_without_a_pinned_commit_is_refused():
    with pytest.raises(ValueError, match="may point elsewhere tomorrow"):
        SourceConfig(hub="gretelai/synthetic_text_to_sql", revision="main", path="*.parquet")


def test_a_hub_dataset_that_cannot_be_fetched_says_what_to_check(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = SourceConfig(hub="nobody/nothing", revision="0" * 40, path="*.parquet", name="far")
    with pytest.raises(HubDatasetUnavailable, match=r"'far': nobody/nothing at 0000.*HF_TOKEN"):
        find_files([source])
