"""Both sides take turns, medians are kept, and a result file is a function of the rows."""

import json
import sys

import pytest

from benchmarks import _harness
from benchmarks._harness import Row, interleaved, machine, main


def test_sides_take_turns_and_give_medians():
    order, values = [], iter([1, 10, 5, 20, 3, 90])

    def side(name):
        def run():
            order.append(name)
            return {"seconds": next(values)}

        return run

    found = interleaved({"ours": side("ours"), "anchor": side("anchor")}, rounds=3)
    assert order == ["ours", "anchor"] * 3
    assert found == {"ours": {"seconds": 3}, "anchor": {"seconds": 20}}


@pytest.mark.parametrize(
    ("better", "goal", "met"),
    [("higher", 2.0, True), ("higher", 2.1, False), ("lower", 2.0, True), ("lower", 1.9, False)],
)
def test_a_goal_bounds_the_ratio_on_its_side(better, goal, met):
    row = Row("work", 4.0, 2.0, "anchor", "s", better, goal)
    assert row.ratio == 2.0 and row.met is met
    assert Row.from_json(row.as_json()) == row


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_run_leaves_the_results_as_they_are(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_harness, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", ["benchmark", *(["--quick"] if quick else [])])
    main("name", lambda asked, scratch: [Row(f"quick {asked}", 1.0, 2.0, "anchor", "s", "lower", 1.0)])
    written = tmp_path / ("home/bench/quick" if quick else "results") / "name.json"
    assert list(tmp_path.rglob("*.json")) == [written]
    stored = json.loads(written.read_text())
    assert stored["rows"][0]["work"] == f"quick {quick}" and stored["rows"][0]["ratio"] == 0.5
    assert "anchor" in capsys.readouterr().out


def test_the_machine_is_described_without_its_name():
    import platform

    assert platform.node() not in json.dumps(machine())
    assert machine()["cores"] >= 1 and machine()["memory_gib"] >= 1
