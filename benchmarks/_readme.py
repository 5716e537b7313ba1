"""`python -m benchmarks._readme` writes the README's performance table from the result files, and nothing by hand.

What stands between the two markers is a function of `results/*.json`; a test fails where they disagree.
"""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks._harness import RESULTS, Row

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
ORDER = ("data", "packing", "training", "merge", "inference", "sql_scoring")


class MarkersMissing(ValueError):
    """The README has no place for the table."""


def main() -> None:
    """Rewrite the README in place."""
    README.write_text(with_section(README.read_text(), section(RESULTS)))
    sys.stdout.write(f"wrote {README.name}\n")


def with_section(text: str, body: str) -> str:
    """The text with the body between its markers.

    Raises:
        MarkersMissing: one of the two does not occur once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MarkersMissing(f"The README must hold {BEGIN} and then {END}, once each.")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{body}\n{text[text.index(END) :]}"


def section(results: Path) -> str:
    """The table, and what it was measured on."""
    stored = {name: json.loads((results / f"{name}.json").read_text()) for name in names(results)}
    machines = {json.dumps(each["machine"]): each["machine"] for each in stored.values()}
    lines = ["| work | llm_assets | instead | ratio | goal |", "|---|---|---|---|---|"]
    lines += [line(Row.from_json(row)) for each in stored.values() for row in each["rows"]]
    return "\n".join([*lines, "", *map(described, machines.values())])


def names(results: Path) -> list[str]:
    """Benchmarks with a result file, in the order of the lineage; unknown ones last."""
    found = [path.stem for path in results.glob("*.json")]
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def line(row: Row) -> str:
    """One row in Markdown; a goal that was not met says so."""
    bound = f"{'≥' if row.better == 'higher' else '≤'} {row.goal:g}"
    instead = f"{number(row.anchor)} {row.unit}: {row.anchor_name}"
    goal = bound if row.met else f"{bound}, **missed**"
    return f"| {row.work} | {number(row.ours)} {row.unit} | {instead} | {number(row.ratio)} | {goal} |"


def number(value: float) -> str:
    """Three digits, with thousands separated: 12,300, 0.725, 0.9997."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.4f}".rstrip("0.") if 0.99 < value < 1 else f"{value:.3g}"


def described(machine: dict[str, Any]) -> str:
    """One sentence on the machine."""
    return (
        f"Measured on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['threads']} "
        f"thread, no GPU; Python {machine['python']}, torch {machine['torch']}."
    )


if __name__ == "__main__":
    main()
