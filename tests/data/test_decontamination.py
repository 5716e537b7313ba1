"""Training rows that quote a benchmark or a held-out row leave, with whom they quote; others stay."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated_by_hand import curated, dropped, kept_ids, questions, row
from pydantic import ValidationError

from llm_assets.data import CurationConfig, SplitConfig
from llm_assets.data.decontamination import BenchmarkUnreadable, ContaminationConfig

PROBLEM = "A train leaves Porto at nine with forty passengers and picks up twelve more at each of five stations"
BOILERPLATE = "Answer the following question as precisely as you can"


@pytest.fixture
def benchmark(tmp_path: Path) -> str:
    path = tmp_path / "gsm.jsonl"
    path.write_text(json.dumps({"question": PROBLEM + ".", "answer": "100", "choices": ["yes", "no"]}) + "\n")
    return str(path)


def by_benchmark(*paths: str, **more: object) -> CurationConfig:
    return CurationConfig(contamination={"benchmarks": paths, **more})


def test_rows_that_quote_a_benchmark_leave_with_its_name(tmp_path: Path, benchmark: str):
    rows = [
        row(f"Please solve: “{PROBLEM.upper()}” How many?", "one hundred"),
        row("unrelated", f"An example: {PROBLEM.replace(' ', '  ')}"),
        row(PROBLEM.split(" with ", maxsplit=1)[0], "yes"),  # eight words of it
        *questions(5),
    ]
    chat, report = curated(tmp_path, rows, by_benchmark(benchmark))
    assert set(dropped(chat)) == {"r0", "r1"} and report["dropped"] == {"contaminated": 2}
    assert report["contaminated_by"] == {"gsm.jsonl": 2}
    assert dropped(chat)["r1"][1] == "7 of 9 runs of 13 words are in gsm.jsonl"


def test_short_texts_are_no_leak(tmp_path: Path, benchmark: str):
    rows = [row("yes", "100"), row("is it so?", "no")]
    assert curated(tmp_path, rows, by_benchmark(benchmark))[1]["kept"] == 2


def test_a_short_problem_is_found_as_a_whole(tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_text("how many legs do nine grey horses have\n\nshort one\n")
    rows = [row("How many legs do nine grey horses have?"), row("How many legs do nine grey horses have left?")]
    chat, _ = curated(tmp_path, rows, by_benchmark(str(path)))
    assert set(dropped(chat)) == {"r0"}


def test_every_file_format_is_read_and_named(tmp_path: Path):
    texts = [f"{word} " * 3 + PROBLEM.replace("train", word) for word in ("bus", "ship", "plane", "tram", "ferry")]
    pq.write_table(pa.table({"q": [{"text": texts[0]}]}), tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"q": [texts[1]]}]}))
    (tmp_path / "c.jsonl").write_text(json.dumps(texts[2]) + "\n\n")
    (tmp_path / "d.csv").write_text(f"q,a\n{texts[3]},1\n")
    (tmp_path / "e.txt").write_text(texts[4])
    paths = [str(tmp_path / name) for name in ("a.parquet", "b*.json", "c.jsonl", "d.csv", "e.txt")]
    rows = [*(row(text) for text in texts), *questions(2)]
    least = {"min_share": 0.5}  # their last words are the same
    _, report = curated(tmp_path, rows, by_benchmark(*paths, **least))
    assert sum(report["contaminated_by"].values()) == 5 and report["kept"] == 2
    for path, text in zip(paths, texts, strict=True):
        _, report = curated(tmp_path, [row(text), *questions(2)], by_benchmark(path, **least))
        assert list(report["contaminated_by"]) == [Path(path).name.replace("*", "")]


def test_held_out_rows_are_protected_when_asked(tmp_path: Path):
    rows = [
        row(PROBLEM, part="test"),
        row(f"Consider this. {PROBLEM} and so on", part="train"),
        row("nothing in common with any of the others here at all", part="train"),
    ]
    split = SplitConfig(split_column="part")
    assert curated(tmp_path, rows, split=split)[1]["kept"] == 3
    chat, report = curated(tmp_path, rows, CurationConfig(contamination={"held_out": True}), split)
    assert report["contaminated_by"] == {"held-out rows": 1} and kept_ids(chat) == ["r2"]
    assert kept_ids(chat, "test") == ["r0"]


def test_a_set_phrase_of_many_rows_is_no_leak_but_a_problem_with_many_answers_is(tmp_path: Path, benchmark: str):
    phrase = "You are very welcome and if you have any other questions just feel free to ask me again"
    with Path(benchmark).open("a") as file:
        file.write(json.dumps({"answer": phrase}) + "\n")
    polite = [{**q, "completion": phrase} for q in questions(11)]
    many_answers = [row(PROBLEM, f"answer {n}") for n in range(20)]
    chat, report = curated(tmp_path, [*polite, *many_answers], by_benchmark(benchmark))
    assert report["contaminated_by"] == {"gsm.jsonl": 20} and kept_ids(chat) == [f"r{n}" for n in range(11)]
    assert curated(tmp_path, [*polite[:10], *questions(30)[20:]], by_benchmark(benchmark))[1]["kept"] == 10


def test_held_out_rows_may_quote_a_benchmark(tmp_path: Path, benchmark: str):
    rows = [row(PROBLEM, part="test"), row("other", part="train")]
    assert curated(tmp_path, rows, by_benchmark(benchmark), SplitConfig(split_column="part"))[1]["kept"] == 2


def test_a_common_phrase_takes_more_than_one_run(tmp_path: Path):
    path = tmp_path / "b.txt"
    path.write_text(f"{BOILERPLATE} {PROBLEM}\n")
    rows = [row(f"{BOILERPLATE} what is the tallest building in the whole of western Europe"), *questions(2)]
    runs = {"ngram_words": 8, "min_words": 8}
    assert curated(tmp_path, rows, by_benchmark(str(path), **runs))[1]["kept"] == 2
    assert curated(tmp_path, rows, by_benchmark(str(path), **runs, min_runs=3))[1]["kept"] == 3
    assert curated(tmp_path, rows, by_benchmark(str(path), **runs, min_share=0.5))[1]["kept"] == 3


def test_a_benchmark_that_cannot_be_compared_is_refused_before_the_work(tmp_path: Path):
    (tmp_path / "short.txt").write_text("yes\nno\n")
    (tmp_path / "broken.json").write_text('{"q": ')
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 20)
    for path, why in (("absent.json", "names no file"), ("short.txt", "no text of at least 8 words")):
        with pytest.raises(BenchmarkUnreadable, match=why):
            curated(tmp_path, questions(2), by_benchmark(str(tmp_path / path)))
    for path in ("broken.json", "latin.txt"):
        with pytest.raises(BenchmarkUnreadable, match="cannot be read"):
            curated(tmp_path, questions(2), by_benchmark(str(tmp_path / path)))
    with pytest.raises(ValidationError, match="protects nothing"):
        ContaminationConfig()
    with pytest.raises(ValidationError, match="no known suffix"):
        ContaminationConfig(benchmarks=("questions.xlsx",))


def test_another_content_of_a_benchmark_has_another_digest(tmp_path: Path, benchmark: str):
    config = by_benchmark(benchmark)
    before = config.named_contents()
    Path(benchmark).write_text("{}")
    assert config.named_contents() != before
