"""Rows come from files, URLs, tables, queries and catalogs alike, mixed as asked and drawn the same way every time."""

import json
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.catalogs import CATALOGS_VARIABLE, CatalogUnknown
from llm_assets.data.ingestion import REFUSED_ROWS, ROWS, IngestReport, ingest
from llm_assets.data.mixing import MixtureUnmet, drawn_rows, refuse_impossible_mixture
from llm_assets.data.reading.columnar import DatabaseUnavailable, QueryInvalid
from llm_assets.data.source_files import find_files
from llm_assets.data.sources import SourceConfig, SourceMissing, SourceUnreadable

ROWS_OF_TWO = [{"q": "one", "a": "1"}, {"q": "two", "a": "2"}]


def run(home: Path, *sources: SourceConfig, required: tuple[str, ...] = ("q",)) -> tuple[IngestReport, pa.Table]:
    out = home / "out"
    out.mkdir(exist_ok=True)
    report = ingest(sources, required, out, log=lambda _: None)
    return report, pq.read_table(out / ROWS)


def numbered(path: Path, name: str, count: int, start: int = 0) -> Path:
    path.write_text("".join(json.dumps({"q": f"{name} {n}"}) + "\n" for n in range(start, start + count)))
    return path


# --- where rows are --------------------------------------------------------------------------------------------------


def test_a_url_is_read_like_a_local_file_whatever_its_format(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    pq.write_table(pa.Table.from_pylist(ROWS_OF_TWO), tmp_path / "p.parquet")
    memory.pipe("/bucket/rows/a.parquet", (tmp_path / "p.parquet").read_bytes())
    memory.pipe("/bucket/rows/b.csv", b"q,a\none,1\ntwo,2\n")
    memory.pipe("/bucket/rows/deep/c.jsonl", b'{"q": "one", "a": "1"}\n{"q": "two", "a": "2"}\n')
    memory.pipe("/bucket/rows/readme.md", b"no rows")
    ids = []
    for url in ("memory://bucket/rows/a.parquet", "memory://bucket/rows/*.csv", "memory://bucket/rows/deep"):
        _, table = run(tmp_path, SourceConfig(path=url, name="far"))
        ids.append(table["row_id"].to_pylist())
    assert ids[0] == ids[1] == ids[2]
    names = [file.name for file in find_files([SourceConfig(path="memory://bucket/rows/**/*.*sv", name="far")])]
    assert names == ["b.csv"]
    with pytest.raises(SourceMissing, match="no file at memory://bucket/none"):
        find_files([SourceConfig(path="memory://bucket/none.jsonl")])


def test_a_url_of_an_unknown_kind_is_refused_without_its_password():
    with pytest.raises(SourceUnreadable, match=r"nowhere://x/a\.csv cannot be reached"):
        find_files([SourceConfig(path="nowhere://x/a.csv")])
    with pytest.raises(SourceUnreadable, match=r"nowhere://x/a\.csv cannot be reached") as refused:
        find_files([SourceConfig(path="nowhere://me:hush@x/a.csv?token=hush")])
    assert "hush" not in str(refused.value)


def test_rows_name_their_file_below_the_source_and_their_line(tmp_path: Path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "x" / "y" / "a.csv").write_text('q,a\none,"first\nsecond"\ntwo,2\n')
    (tmp_path / "x" / "b.json").write_text('[\n {"q": "three"},\n\n {"q": "four"}\n]\n')
    numbered(tmp_path / "x" / "c.jsonl", "c", 1)
    _, table = run(tmp_path, SourceConfig(path=str(tmp_path / "x" / "**" / "*.*"), name="s"))
    places = sorted(zip(table["source_file"].to_pylist(), table["source_line"].to_pylist(), strict=True))
    assert places == [("b.json", 2), ("b.json", 4), ("c.jsonl", 1), ("y/a.csv", 2), ("y/a.csv", 4)]


@pytest.fixture(params=["duckdb", "sqlite"])
def database(request, tmp_path: Path) -> Path:
    path = tmp_path / "some.db"
    connect = duckdb.connect if request.param == "duckdb" else sqlite3.connect
    connection = connect(str(path))
    connection.execute("CREATE TABLE talks (q TEXT, n INTEGER, share DOUBLE)")
    connection.execute("INSERT INTO talks VALUES ('two', 2, 0.5), ('one', 1, NULL)")
    connection.commit()
    connection.close()
    return path


def test_a_table_is_read_in_its_order_and_a_query_sorted_or_as_it_says(database: Path, tmp_path: Path):
    report, table = run(tmp_path, SourceConfig(database=str(database), table="talks"))
    assert table.select(["q", "n", "share"]).to_pylist() == [
        {"q": "two", "n": 2, "share": 0.5},
        {"q": "one", "n": 1, "share": None},
    ]
    assert (table["source"][0].as_py(), report.sources["talks"].files) == ("talks", 0)
    query = SourceConfig(database=str(database), query="SELECT q FROM talks WHERE n < 9 ORDER BY q;", name="few")
    assert run(tmp_path, query)[1]["q"].to_pylist() == ["one", "two"]


def test_a_table_that_does_not_exist_and_a_query_that_is_no_select_are_refused(database: Path, tmp_path: Path):
    with pytest.raises(SourceMissing, match=r"'walks': table walks cannot be read.*walks"):
        run(tmp_path, SourceConfig(database=str(database), table="walks"))
    for query in ("DROP TABLE talks", "SELECT 1; SELECT 2", "SELECT FROM WHERE", "SELECT nothing FROM talks"):
        with pytest.raises(QueryInvalid, match="'x'"):
            run(tmp_path, SourceConfig(database=str(database), query=query, name="x"))


def test_a_database_that_cannot_be_opened_is_refused_without_its_password(tmp_path: Path):
    with pytest.raises(DatabaseUnavailable, match="no database at"):
        run(tmp_path, SourceConfig(database=str(tmp_path / "none.db"), table="t"))
    (tmp_path / "text.db").write_text("no database " * 2000)
    with pytest.raises(DatabaseUnavailable, match="cannot be attached"):
        run(tmp_path, SourceConfig(database=str(tmp_path / "text.db"), table="t"))
    with pytest.raises(DatabaseUnavailable, match="cannot be attached") as refused:
        run(tmp_path, SourceConfig(database="postgres://me:hush@127.0.0.1:1/db", table="t"))
    assert "hush" not in str(refused.value)


def test_a_three_part_name_is_a_table_of_a_database_or_files_as_its_catalog_says(tmp_path: Path, monkeypatch):
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute("CREATE SCHEMA sales; CREATE TABLE sales.orders AS SELECT 'one' AS q")
    (tmp_path / "lake" / "sales" / "orders").mkdir(parents=True)
    numbered(tmp_path / "lake" / "sales" / "orders" / "part.jsonl", "part", 3)
    catalogs = {
        "prod": {"database": str(tmp_path / "w.duckdb")},
        "lake": {"files": str(tmp_path / "lake" / "{schema}" / "{table}" / "*.jsonl")},
    }
    (tmp_path / "catalogs.yaml").write_text(json.dumps(catalogs))
    monkeypatch.setenv(CATALOGS_VARIABLE, str(tmp_path / "catalogs.yaml"))
    report, _ = run(tmp_path, SourceConfig(table="prod.sales.orders"))
    assert report.held == {"orders": 1}
    report, _ = run(tmp_path, SourceConfig(table="lake.sales.orders", name="files"))
    assert report.held == {"files": 3}


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        (None, "Known catalogs: none, LLM_ASSETS_CATALOGS is not set"),
        ("prod: {database: w.duckdb}", "is in catalog 'dev'. Known catalogs: prod"),
        ("prod: {files: 'x/*.parquet'}", "must contain {schema} and {table}"),
        ("prod: {}", "either a database or files"),
        ("prod: [", "no mapping of catalogs"),
    ],
)
def test_an_unknown_catalog_or_a_broken_mapping_is_refused(tmp_path: Path, monkeypatch, mapping: str | None, said: str):
    monkeypatch.delenv(CATALOGS_VARIABLE, raising=False)
    if mapping:
        (tmp_path / "catalogs.yaml").write_text(mapping)
        monkeypatch.setenv(CATALOGS_VARIABLE, str(tmp_path / "catalogs.yaml"))
    with pytest.raises(CatalogUnknown) as refused:
        run(tmp_path, SourceConfig(table="dev.sales.orders"))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "has no origin"),
        ({"path": "a.csv", "table": "a.b.c"}, "path and table"),
        ({"path": "a.csv", "database": "x.db"}, "beside database"),
        ({"query": "SELECT 1", "database": "x.db"}, "a name for its rows"),
        ({"table": "orders"}, "no catalog.schema.table"),
        ({"hub": "a/b", "revision": "0" * 40}, "needs path"),
        ({"path": "a.csv", "encoding": "klingon"}, "encoding 'klingon' is unknown"),
        ({"path": "a.csv", "rows": 5, "share": 0.1}, "rows and share each say"),
    ],
)
def test_a_source_that_says_too_little_or_too_much_is_refused_at_load(fields: dict, said: str):
    with pytest.raises(ValueError, match=said):
        SourceConfig(**fields)


def test_what_a_sensor_can_watch_are_files_urls_and_databases_that_are_files():
    hub = {"hub": "a/b", "revision": "0" * 40}
    watched = [
        SourceConfig(path="rows/*.csv"),
        SourceConfig(path="s3://b/rows/*.csv"),
        SourceConfig(database="x.db", table="t"),
        SourceConfig(database="postgres://h/db", table="t"),
        SourceConfig(path="data/*.parquet", **hub),
        SourceConfig(table="prod.sales.orders"),
    ]
    assert [w for s in watched for w in s.watched] == ["rows/*.csv", "s3://b/rows/*.csv", "x.db"]


def test_renamed_columns_let_sources_fit_one_format(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"q": "one", "a": "1"}\n')
    (tmp_path / "b.jsonl").write_text('{"question": "one", "reply": "1"}\n')
    renamed = SourceConfig(path=str(tmp_path / "b.jsonl"), rename={"question": "q", "reply": "a"})
    _, table = run(tmp_path, SourceConfig(path=str(tmp_path / "a.jsonl")), renamed)
    assert table.schema.names[:2] == ["q", "a"]
    first, second = table["row_id"].to_pylist()
    assert second == f"{first}-2"  # the same content, wherever it came from
    with pytest.raises(SourceUnreadable, match="one name after `rename`"):
        run(tmp_path, renamed.model_copy(update={"rename": {"question": "reply"}}), required=())


# --- how much of each ------------------------------------------------------------------------------------------------


def held(**rows: int) -> dict[str, int]:
    return rows


def source(name: str, **mix: float) -> SourceConfig:
    return SourceConfig.model_validate({"path": f"{name}.jsonl", **mix})


@pytest.mark.parametrize(
    ("sources", "rows", "drawn"),
    [
        ([source("a"), source("b")], held(a=7, b=5), held(a=7, b=5)),
        ([source("a", rows=3), source("b")], held(a=7, b=5), held(a=3, b=5)),
        ([source("a", weight=3), source("b", weight=1), source("c")], held(a=90, b=50, c=3), held(a=90, b=30, c=3)),
        ([source("a", weight=0.5), source("b", weight=1.5)], held(a=900, b=300), held(a=100, b=300)),
        ([source("a", share=0.25), source("b")], held(a=900, b=300), held(a=100, b=300)),
        ([source("a", share=0.2), source("b", share=0.3), source("c")], held(a=9, b=9, c=5), held(a=2, b=3, c=5)),
        ([source("a", share=0.75), source("b", share=0.25)], held(a=900, b=100), held(a=300, b=100)),
    ],
)  # fmt: skip
def test_mixtures_take_what_they_say(sources, rows, drawn):
    assert drawn_rows(sources, rows) == drawn


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([source("a", weight=1), source("b", share=0.5)], "a have a weight and b a share"),
        ([source("a", share=0.7), source("b", share=0.7)], "add up to 1.4"),
        ([source("a", share=1.0), source("b")], "leaves nothing for the other sources"),
        ([source("a", share=0.5), source("b", share=0.3)], "add up to 0.8"),
    ],
)
def test_a_mixture_that_no_rows_can_meet_is_refused(sources, said):
    with pytest.raises(MixtureUnmet, match=said):
        refuse_impossible_mixture(sources)


def test_a_source_with_too_few_rows_for_its_part_is_refused_and_never_repeated():
    with pytest.raises(MixtureUnmet, match="'a' holds 5 rows, fewer than its rows 9 needs"):
        drawn_rows([source("a", rows=9)], held(a=5))
    with pytest.raises(MixtureUnmet, match=r"'a' holds 5 rows, fewer than its share 0\.5, which is 50 rows"):
        drawn_rows([source("a", share=0.5), source("b")], held(a=5, b=50))


def drawn_of(home: Path, path: Path, **mix: float) -> list[str]:
    return run(home, SourceConfig.model_validate({"path": str(path), "name": "s", **mix}))[1]["q"].to_pylist()


def test_a_draw_is_seeded_keeps_file_order_and_moves_little_when_rows_are_added(tmp_path: Path):
    path = numbered(tmp_path / "a.jsonl", "a", 5000)
    drawn = drawn_of(tmp_path, path, rows=500)
    assert len(drawn) == 500 and drawn == drawn_of(tmp_path, path, rows=500)
    assert drawn == sorted(drawn, key=lambda q: int(q.split()[1]))
    assert abs(sum(int(q.split()[1]) for q in drawn) / 500 - 2500) < 250  # from everywhere, not the first ones
    assert len({*drawn} & {*drawn_of(tmp_path, path, rows=500, seed=1)}) < 100
    assert {*drawn} < {*drawn_of(tmp_path, path, rows=600)}
    more = drawn_of(tmp_path, numbered(tmp_path / "a.jsonl", "a", 5050), rows=500)
    assert len({*drawn} & {*more}) >= 480  # one in a hundred is new, and about as many gave way


def test_repeated_rows_are_drawn_to_the_exact_number(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"q": "same"}\n' * 10 + '{"q": "other"}\n' * 10)
    assert len(drawn_of(tmp_path, tmp_path / "a.jsonl", rows=13)) == 13


def test_the_report_follows_each_row_from_the_file_to_the_mixture(tmp_path: Path):
    a, b = numbered(tmp_path / "a.jsonl", "a", 100), numbered(tmp_path / "b.jsonl", "b", 30)
    b.write_text(b.read_text() + "{\n")
    report, table = run(
        tmp_path, SourceConfig(path=str(a), weight=2), SourceConfig(path=str(b), weight=1, max_refused_share=0.1)
    )
    found = report.sources["b"]
    assert (found.files, found.read, found.refused, found.held, found.drawn) == (1, 31, {"malformed": 1}, 30, 30)
    assert report.held == {"a": 60, "b": 30} and table.num_rows == report.rows == 90
    assert pq.read_table(tmp_path / "out" / REFUSED_ROWS).num_rows == report.refused == 1
    assert report.filled == {"q": 90}


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as listing and reading two objects takes."""

    objects: ClassVar = {"rows/a.jsonl": b'{"q": "one"}\n', "rows/b.jsonl": b'{"q": "two"}\n', "rows/c.md": b"no rows"}

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, _, options = self.path.lstrip("/").partition("?")
        key = path.removeprefix("bucket").strip("/")
        asked = parse_qs(options)
        if "list-type" in asked:
            prefix = asked.get("prefix", [""])[0]
            found = "".join(
                f"<Contents><Key>{k}</Key><Size>{len(v)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                "</Contents>"
                for k, v in self.objects.items()
                if k.startswith(prefix)
            )
            count = f"<KeyCount>{found.count('<Key>')}</KeyCount><IsTruncated>false</IsTruncated>"
            content = f"<ListBucketResult>{count}{found}</ListBucketResult>".encode()
        elif key and key not in self.objects:
            self.send_error(404)
            return
        else:
            content = self.objects.get(key, b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_args: object) -> None: ...


def test_an_s3_url_is_read_with_pyarrows_own_client(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = f"endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    try:
        far = SourceConfig(path=f"s3://key:hush@bucket/rows/*.jsonl?{options}", name="far")
        _, table = run(tmp_path, far)
        with pytest.raises(SourceMissing, match="no file at s3://bucket/none"):
            find_files([far.model_copy(update={"path": f"s3://key:hush@bucket/none/*.jsonl?{options}"})])
    finally:
        server.shutdown()
    assert table["q"].to_pylist() == ["one", "two"]
    assert table["source_file"].to_pylist() == ["a.jsonl", "b.jsonl"]
