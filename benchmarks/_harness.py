"""One way to compare: both sides in turn in one call, medians, a table, and a result file the README is made from.

Taking turns (A B A B ...) lets a machine that is busy for a while slow both sides alike; where that is not enough, a
benchmark counts CPU seconds instead of wall seconds and says so in its unit. A quick run keeps its numbers out of
`results/`: they prove that the benchmark runs, and little else.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import argparse
import json
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from llm_assets.demo.rows import home

RESULTS = Path(__file__).parent / "results"
Better = Literal["higher", "lower"]
Side = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        work: What both sides do.
        ours: Median of this project.
        anchor: Median of the alternative.
        anchor_name: What the alternative is.
        unit: Of both medians.
        better: Whether a higher or a lower value is better.
        goal: Bound on the ratio: at least this where higher is better, at most this where lower is.
    """

    work: str
    ours: float
    anchor: float
    anchor_name: str
    unit: str
    better: Better
    goal: float

    @property
    def ratio(self) -> float:
        """Ours over anchor."""
        return self.ours / self.anchor

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.goal if self.better == "higher" else self.ratio <= self.goal

    def as_json(self) -> dict[str, Any]:
        """The row as a result file holds it, rounded to four digits."""
        rounded = {name: float(f"{getattr(self, name):.4g}") for name in ("ours", "anchor", "ratio")}
        return {**asdict(self), **rounded}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Row":
        """The row of a result file."""
        return cls(**{name: value for name, value in stored.items() if name != "ratio"})


def main(name: str, measure: Callable[[bool, Path], list[Row]]) -> None:
    """Command line of one benchmark.

    Args:
        name: Of the result file.
        measure: Called with whether to be quick and an empty directory; returns the rows.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="small work, at most a minute; results/ stays as it is")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as scratch:
        rows = measure(quick, Path(scratch))
    path = (home() / "bench" / "quick" if quick else RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": [row.as_json() for row in rows]}, indent=1) + "\n")
    print(table(rows))
    print(f"wrote {path}")


def interleaved(sides: Mapping[str, Side], rounds: int) -> dict[str, dict[str, float]]:
    """Run every side once per round, in turn, and return the median of each side's metrics.

    Args:
        sides: Name to a function that does the work once and returns what it measured by metric name.
        rounds: How often each side runs.
    """
    measured: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, run in sides.items():
            measured[name].append(run())
            shown = ", ".join(f"{metric} {value:.4g}" for metric, value in measured[name][-1].items())
            print(f"round {number} of {rounds}, {name}: {shown}", flush=True)
    return {
        name: {metric: statistics.median(run[metric] for run in runs) for metric in runs[0]}
        for name, runs in measured.items()
    }


def cpu_seconds() -> float:
    """CPU seconds of this process, its threads, and its children that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def machine() -> dict[str, str | int]:
    """What the numbers depend on, and nothing that says whose machine it is."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(memory_bytes / 2**30),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "python": platform.python_version(),
        "torch": version("torch"),
    }


def table(rows: list[Row]) -> str:
    """The rows for a terminal."""
    cells = [("work", "ours", "anchor", "unit", "ratio", "goal", "", "against")]
    for row in rows:
        sign = "≥" if row.better == "higher" else "≤"
        verdict = "met" if row.met else "MISSED"
        values = (f"{row.ours:.4g}", f"{row.anchor:.4g}", row.unit, f"{row.ratio:.2f}", f"{sign} {row.goal:g}")
        cells.append((row.work, *values, verdict, row.anchor_name))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)
