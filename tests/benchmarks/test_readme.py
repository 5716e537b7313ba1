"""The README's performance table says what the result files say, and cannot be edited by hand unnoticed."""

import json

import pytest

from benchmarks._harness import RESULTS, Row
from benchmarks._readme import BEGIN, END, README, MarkersMissing, line, names, number, section, with_section

MACHINE = {"cpu": "A", "cores": 2, "memory_gib": 8, "threads": 1, "python": "3.11.9", "torch": "2.13.0"}


def test_the_readme_agrees_with_the_result_files():
    text = README.read_text()
    assert text == with_section(text, section(RESULTS)), "run `python -m benchmarks._readme`"


def test_every_benchmark_has_a_result_file():
    benchmarks = {path.stem for path in RESULTS.parent.glob("[!_]*.py")}
    assert set(names(RESULTS)) == benchmarks


@pytest.mark.parametrize("name", names(RESULTS))
def test_a_result_file_has_exactly_the_fields_of_its_schema_and_names_no_machine(name):
    stored = json.loads((RESULTS / f"{name}.json").read_text())
    assert set(stored) == {"machine", "rows"} and set(stored["machine"]) == set(MACHINE)
    assert not any("/" in str(value) for value in stored["machine"].values())
    for row in stored["rows"]:
        assert set(row) == {"work", "ours", "anchor", "anchor_name", "unit", "ratio", "better", "goal"}
        assert row["ratio"] == pytest.approx(row["ours"] / row["anchor"], rel=2e-3)


def test_a_changed_result_changes_the_section(tmp_path):
    row = Row("work", 2.0, 1.0, "anchor", "rows/s", "higher", 1.5)
    stored = {"machine": MACHINE, "rows": [row.as_json()]}
    (tmp_path / "packing.json").write_text(json.dumps(stored))
    before = section(tmp_path)
    stored["rows"][0]["ours"] = 3.0
    (tmp_path / "packing.json").write_text(json.dumps(stored))
    assert section(tmp_path) != before
    assert "| work | 2 rows/s | 1 rows/s: anchor | 2 | ≥ 1.5 |" in before
    assert "Measured on A, 2 cores, 8 GiB, 1 thread" in before


def test_a_missed_goal_is_told():
    assert "≥ 3, **missed**" in line(Row("work", 2.0, 1.0, "anchor", "rows/s", "higher", 3.0))
    assert "≤ 3 |" in line(Row("work", 2.0, 1.0, "anchor", "s", "lower", 3.0))


def test_only_what_stands_between_the_markers_is_rewritten():
    assert with_section(f"a\n{BEGIN}\nold\n{END}\nb", "new") == f"a\n{BEGIN}\nnew\n{END}\nb"
    for broken in (f"{END}{BEGIN}", BEGIN, "", f"{BEGIN}{BEGIN}{END}"):
        with pytest.raises(MarkersMissing):
            with_section(broken, "new")


@pytest.mark.parametrize(
    ("value", "text"), [(12_345, "12,300"), (0.7251, "0.725"), (0.9997, "0.9997"), (4.1, "4.1"), (99.96, "100")]
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text
