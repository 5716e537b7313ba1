"""Damage of a row costs that row and is counted with its place; damage of a file stops the run with its remedy."""

import gzip
import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.ingestion import REFUSED_ROWS, ROWS, TooManyRowsRefused, ingest
from llm_assets.data.nested import nested_columns, opened
from llm_assets.data.reading import batches, json_rows
from llm_assets.data.sources import SourceConfig, SourceEmpty, SourceUnreadable

GOOD = b'{"q": "one"}\n'


def read(home: Path, name: str, content: bytes, **fields) -> tuple[list[str], list[tuple[str, int, str]]]:
    """Questions read, and `(file, line, reason)` of the rows that were not."""
    (home / name).write_bytes(content)
    (home / "out").mkdir(exist_ok=True)
    source = SourceConfig.model_validate({"path": str(home / name), "max_refused_share": 1, **fields})
    ingest([source], ("q",), home / "out", log=lambda _: None)
    refused = pq.read_table(home / "out" / REFUSED_ROWS).to_pylist()
    assert all(len(row["row_id"]) == 16 and row["source"] and row["detail"] for row in refused)
    places = [(row["file"], row["line"], row["reason"]) for row in refused]
    return pq.read_table(home / "out" / ROWS)["q"].to_pylist(), places


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"q": "two"', "malformed"),
        (b"q: two", "malformed"),
        (b'{"q": "two"} {"q": "three"}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b"[1, 2]", "not_an_object"),
        (b'"two"', "not_an_object"),
        ('{"q": "zwölf"}'.encode("latin-1"), "bad_encoding"),
        (b'{"q": "half \\ud83d"}', "bad_encoding"),
        (b'{"q": {"deep": "half \\ud83d"}}', "bad_encoding"),
        (b'{"q": "' + b"x" * 10_000_000 + b'"}', "row_too_large"),
    ],
)
def test_a_malformed_line_costs_itself_and_is_counted_with_its_place(tmp_path: Path, bad: bytes, reason: str):
    questions, refused = read(tmp_path, "a.jsonl", GOOD + b"\n" + bad + b"\n" + GOOD)
    assert questions == ["one", "one"]
    assert refused == [("a.jsonl", 3, reason)]


def test_more_damage_than_the_source_allows_stops_the_run_with_the_first_places(tmp_path: Path):
    content = GOOD * 98 + b"{\n" + GOOD * 300 + b"{\n"
    assert len(read(tmp_path, "a.jsonl", content, max_refused_share=0.01)[1]) == 2
    said = r"2 of 400 rows are refused \(malformed: 2\).*0\.001.*a\.jsonl, line 99 \(row [0-9a-f]{16}\): malformed: "
    with pytest.raises(TooManyRowsRefused, match=said):
        read(tmp_path, "a.jsonl", content, max_refused_share=0.001)


def test_a_large_file_of_another_encoding_is_given_up_early(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_ROWS", 500)
    with pytest.raises(TooManyRowsRefused, match=r"1000 of 1000 rows.*bad_encoding.*is the encoding latin-1"):
        read(tmp_path, "a.jsonl", '{"q": "zwölf"}\n'.encode("latin-1") * 5000, max_refused_share=0.5)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "utf-16-le"])
def test_other_encodings_are_read_where_the_source_names_them(tmp_path: Path, name: str, encoding: str):
    text = {"a.json": '[{"q": "zwölf"}]', "a.jsonl": '{"q": "zwölf"}\n', "a.csv": "q,a\nzwölf,1\n"}[name]
    assert read(tmp_path, name, text.encode(encoding), encoding=encoding) == (["zwölf"], [])
    if encoding == "utf-8-sig":  # a byte order mark needs no mention
        assert read(tmp_path, name, text.encode(encoding)) == (["zwölf"], [])
    elif encoding.startswith("utf-16"):
        with pytest.raises(SourceUnreadable, match="Set the source's encoding to utf-16"):
            read(tmp_path, name, text.encode(encoding))


@pytest.mark.parametrize(("name", "text"), [("a.json", '[{"q": "zwölf"}]'), ("a.csv", "q\nzwölf\n")])
def test_bytes_of_another_encoding_refuse_a_file_whose_rows_span_lines(tmp_path: Path, name: str, text: str):
    with pytest.raises(SourceUnreadable, match=r"is not utf-8.*latin-1 and cp1252 are common"):
        read(tmp_path, name, text.encode("latin-1"))


def test_nan_infinity_null_and_absent_are_no_value(tmp_path: Path):
    lines = [
        b'{"q": "a", "n": NaN}',
        b'{"q": NaN, "n": Infinity}',
        b'{"q": null, "n": 1.5}',
        b'{"n": -1}',
        b'{"q": "", "n": null}',
    ]
    questions, refused = read(tmp_path, "a.jsonl", b"\n".join(lines))
    assert (questions, refused) == (["a", None, None, None, ""], [])
    assert pq.read_table(tmp_path / "out" / ROWS)["n"].to_pylist() == [None, None, 1.5, -1, None]
    pq.write_table(pa.table({"q": ["a", None], "n": [float("nan"), 2.0]}), tmp_path / "b.parquet")
    read(tmp_path, "b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert pq.read_table(tmp_path / "out" / ROWS)["n"].to_pylist() == [None, 2.0]


def test_whole_numbers_too_large_for_a_column_stay_exact_as_text(tmp_path: Path):
    read(tmp_path, "a.jsonl", b'{"q": "a", "n": 123456789012345678901234567890}\n{"q": "b", "n": 2}\n')
    assert pq.read_table(tmp_path / "out" / ROWS)["n"].to_pylist() == ["123456789012345678901234567890", "2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"q": "one"}, {"q": "two"}', r"a\.json, line 1: not JSON from here on: a comma or the closing ]"),
        (b'[{"q": "one"},\n {"q": "two"},\n', r"a\.json, line 3: .*the array ends early"),
        (b'[{"q": "one"},\n {"q": "tw', r"a\.json, line 2: .*Unterminated string"),
        (b'[{"q": "one"}\n {"q": "two"}]', r"line 2: .*a comma or the closing ] is missing"),
        (b'[{"q": "one"}]\n[{"q": "two"}]', r"line 2: .*something follows the array"),
        (b'[{"q": one}]', "not JSON"),
        (b"<html>no rows</html>", "1 of 1 rows are refused"),
    ],
)
def test_a_json_array_that_ends_early_or_is_malformed_refuses_the_file(tmp_path: Path, content: bytes, said: str):
    with pytest.raises((SourceUnreadable, TooManyRowsRefused), match=said):
        read(tmp_path, "a.json", content, max_refused_share=0)


def test_an_array_is_read_over_any_number_of_chunks_with_its_lines(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(json_rows, "CHUNK_CHARACTERS", 7)
    rows = [{"q": f'a "{n}" ] , é [', "n": n, "deep": [{"x": [n]}]} for n in range(40)]
    content = json.dumps([*rows, 5, {"q": "last"}], indent=1, ensure_ascii=False).encode()
    questions, refused = read(tmp_path, "a.json", content)
    assert questions == [*(row["q"] for row in rows), "last"]
    assert refused == [("a.json", 2 + 40 * 11, "not_an_object")]
    assert pq.read_table(tmp_path / "out" / ROWS)["deep"].to_pylist()[39] == '[{"x":[39]}]'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("lines.json", b'{"q": "one"}\n{"q": "two"}\n'),
        ("array.jsonl", b'[{"q": "one"},\n{"q": "two"}]'),
        ("pretty.json", b'{\n "q": "one"\n}\n{\n "q": "two"\n}'),
        ("crlf.jsonl", b'{"q": "one"}\r\n\r\n{"q": "two"}\r\n'),
        ("separator.jsonl", '{"q": "one", "x": "\u2028"}\n{"q": "two"}'.encode()),
        ("semicolon.csv", b'"q";"a"\none;1\ntwo;2\n'),
        ("tab.tsv", b"q\ta\none\t1,5\ntwo\t2\n"),
        ("crlf.csv", b"q,a\r\none,1\r\n\r\ntwo,2\r\n"),
    ],
)
def test_a_file_is_read_as_what_it_is_whatever_its_suffix_promises(tmp_path: Path, name: str, content: bytes):
    assert read(tmp_path, name, content) == (["one", "two"], [])


def test_csv_fields_hold_line_breaks_quotes_and_delimiters(tmp_path: Path):
    content = b'q,a\n"one\ntwo, ""three""",1\nfour,5,6\nfive\nsix,"7"x\neight,9\n'
    questions, refused = read(tmp_path, "a.csv", content)
    assert questions == ['one\ntwo, "three"', "eight"]
    assert refused == [
        ("a.csv", 4, "wrong_field_count"),
        ("a.csv", 5, "wrong_field_count"),
        ("a.csv", 6, "malformed"),
    ]


def test_a_quote_that_is_never_closed_or_a_repeated_name_refuses_a_csv_file(tmp_path: Path):
    with pytest.raises(SourceUnreadable, match=r"a\.csv, line 3: a quote that opens here is never closed"):
        read(tmp_path, "a.csv", b'q,a\none,1\ntwo,"2\nthree,3\n')
    with pytest.raises(SourceUnreadable, match="names 'q' more than once"):
        read(tmp_path, "a.csv", b"q,q\none,1\n")


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("cut", [0.5, 1.0])
def test_a_compressed_file_that_ends_early_is_refused(tmp_path: Path, suffix: str, cut: float):
    import bz2

    plain = b"".join(json.dumps({"q": f"{n} {n * 7919}"}).encode() + b"\n" for n in range(20_000))
    packed = {
        ".gz": lambda: gzip.compress(plain),
        ".bz2": lambda: bz2.compress(plain),
        ".zst": lambda: pa.compress(plain, "zstd", asbytes=True),
    }[suffix]()
    content = packed[: int(len(packed) * cut)]
    if cut == 1.0:
        assert len(read(tmp_path, "a.jsonl" + suffix, content)[0]) == 20_000
        return
    with pytest.raises(SourceUnreadable, match="is damaged or ends early"):
        read(tmp_path, "a.jsonl" + suffix, content)


def test_a_file_that_is_not_what_its_suffix_says_is_refused(tmp_path: Path):
    with pytest.raises(SourceUnreadable, match=r"b\.parquet cannot be read as parquet"):
        read(tmp_path, "b.parquet", b"no parquet")
    with pytest.raises(SourceUnreadable, match="is damaged or ends early"):
        read(tmp_path, "b.jsonl.gz", b'{"q": "one"}\n')


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b"\n \n"), ("a.json", b"[]"), ("a.csv", b"q,a\n"), ("b.csv", b"")]
)
def test_a_file_without_rows_refuses_its_source(tmp_path: Path, name: str, content: bytes):
    with pytest.raises(SourceEmpty, match="holds no row"):
        read(tmp_path, name, content)


def test_an_object_keyed_by_ids_is_no_table(tmp_path: Path):
    rows = b"".join(json.dumps({f"id_{n}_{i}": 1 for i in range(100)}).encode() + b"\n" for n in range(11))
    with pytest.raises(SourceUnreadable, match="more than 1000 different keys, such as id_0_0"):
        read(tmp_path, "a.jsonl", rows)


def test_files_of_different_schemas_fit_under_one_another(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text('{"q": "one", "n": 1, "t": [1]}\n{"q": {"x": 1}, "n": true}\n')
    (tmp_path / "rows" / "b.csv").write_text("q,extra\ntwo,x\n")
    table = pa.table({"q": ["three"], "n": pa.array([2], pa.int8()), "t": [[{"y": 1}]]})
    pq.write_table(table, tmp_path / "rows" / "c.parquet")
    (tmp_path / "out").mkdir()
    ingest([SourceConfig(path=str(tmp_path / "rows"))], ("q",), tmp_path / "out", log=lambda _: None)
    rows = pq.read_table(tmp_path / "out" / ROWS, columns=["q", "n", "t", "extra"]).to_pylist()
    assert rows == [
        {"q": "one", "n": "1", "t": "[1]", "extra": None},
        {"q": '{"x":1}', "n": "true", "t": None, "extra": None},
        {"q": "two", "n": None, "t": None, "extra": "x"},
        {"q": "three", "n": "2", "t": '[{"y":1}]', "extra": None},
    ]


def test_keys_that_appear_late_lose_no_earlier_row(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_ROWS", 10)
    rows = [{"q": f"{n}", **({f"k{n // 30}": n} if n % 30 == 29 else {})} for n in range(95)]
    questions, _ = read(tmp_path, "a.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    assert questions == [row["q"] for row in rows]
    table = pq.read_table(tmp_path / "out" / ROWS)
    assert [n for n in table["k1"].to_pylist() if n is not None] == [59]


def test_a_parquet_row_beyond_the_limit_is_counted(tmp_path: Path):
    pq.write_table(pa.table({"q": ["one", "x" * 5000, "two"]}), tmp_path / "a.parquet")
    questions, refused = read(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes(), max_row_bytes=1000)
    assert (questions, refused) == (["one", "two"], [("a.parquet", 2, "row_too_large")])


def test_a_conversation_of_a_hundred_thousand_turns_is_one_row(tmp_path: Path):
    turns = [{"role": ("user", "assistant")[n % 2], "content": str(n)} for n in range(100_000)]
    content = json.dumps({"q": "one", "messages": turns}).encode() + b"\n" + GOOD
    questions, refused = read(tmp_path, "a.jsonl", content)
    assert (questions, refused) == (["one", "one"], [])


def test_parquet_text_that_is_not_utf8_costs_its_row(tmp_path: Path):
    texts = pa.array([b"one", b"zw\xf6lf", b"three"], pa.binary())
    damaged = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    file = BytesIO()
    pq.write_table(pa.table({"q": damaged, "n": [1, 2, 3]}), file)
    questions, refused = read(tmp_path, "a.parquet", file.getvalue())
    assert questions == ["one", "three"] and refused == [("a.parquet", 2, "bad_encoding")]


def test_a_parquet_type_that_cannot_be_read_is_named(tmp_path: Path):
    file = BytesIO()
    pq.write_table(pa.table({"q": ["one"], "half": pa.array([1], pa.float16())}), file)
    with pytest.raises(SourceUnreadable, match=r"has a type that cannot be read.*float32"):
        read(tmp_path, "a.parquet", file.getvalue())


def test_objects_without_a_key_and_columns_of_any_name_are_rows(tmp_path: Path):
    assert read(tmp_path, "a.jsonl", GOOD + b"{}\n" * 2)[0] == ["one", None, None]
    assert read(tmp_path, "b.jsonl", b'{"draw priority": "x", "q": "one"}\n')[0] == ["one"]
    (tmp_path / "c.jsonl").write_bytes(b"{}\n{}\n")
    assert ingest([SourceConfig(path=str(tmp_path / "c.jsonl"))], (), tmp_path / "out", log=lambda _: None).rows == 2


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_list_keeps_being_one_and_text_that_looks_like_one_does_not_become_one(tmp_path: Path, suffix: str):
    rows = [{"q": "a", "listed": ["x"], "written": '["x"]'}, {"q": "b", "listed": None, "written": None}]
    file = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode() if suffix == "jsonl" else file.getvalue()
    read(tmp_path, f"a.{suffix}", content)
    table = pq.read_table(tmp_path / "out" / ROWS)
    assert nested_columns(table.schema) == ["listed"]
    assert table["listed"].to_pylist() == table["written"].to_pylist() == ['["x"]', None]
    first, second = (opened(row, nested_columns(table.schema)) for row in table.to_pylist())
    assert (first["listed"], first["written"], second["listed"]) == (["x"], '["x"]', None)
