"""Folding an adapter into a 785 M-parameter Llama (1.57 GB): block by block, against peft's `merge_and_unload`.

Each merge has its own process. Times are of reading, merging and writing, imports left out, and the disk is flushed
before each; memory is the peak of the whole process (VmHWM: imports, anonymous and mapped pages). Both sides must write
the same bits, or the benchmark ends. A plain copy of the base's bytes says how much of the time the disk and the page
cache take from any merge.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._harness import Row, cpu_seconds, interleaved, main
from llm_assets.training.shards import model_entries, read_rows

ANCHOR = "peft `merge_and_unload`"
COPY = "`cp` of the same bytes"
ALLOWED_MIB = 500e6 / 2**20


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Seconds, CPU seconds and peak memory of both merges, and of a plain copy."""
    hidden, layers = (256, 10) if quick else (2048, 14)
    child("prepare", scratch, hidden, layers)
    tensors = [entry for entries in model_entries(scratch / "base").values() for entry in entries]
    sides = {
        "ours": lambda: merged("ours", scratch),
        ANCHOR: lambda: merged("peft", scratch),
        COPY: lambda: copied(scratch),
    }
    found = interleaved(sides, rounds=1 if quick else 3)
    require_equal(scratch / "ours", scratch / "peft")
    work = f"Merge of {sum(entry.values for entry in tensors) / 1e6:,.0f} M parameters"
    ours, peft, copy = found["ours"], found[ANCHOR], found[COPY]
    largest_mib = max(entry.bytes for entry in tensors) / 2**20
    bound = 4 * largest_mib + ALLOWED_MIB
    return [
        Row(f"{work}: time", ours["seconds"], peft["seconds"], ANCHOR, "s", "lower", 0.667),
        Row(f"{work}: CPU time", ours["cpu_seconds"], peft["cpu_seconds"], ANCHOR, "CPU s", "lower", 0.667),
        Row(f"{work}: peak memory", ours["peak_mib"], peft["peak_mib"], ANCHOR, "MiB", "lower", 0.4),
        Row(
            f"{work}: peak memory beside its bound",
            ours["peak_mib"],
            bound,
            "4 x largest tensor + 500 MB",
            "MiB",
            "lower",
            1.0,
        ),
        Row(f"{work}: time beside a copy", ours["seconds"], copy["seconds"], COPY, "s", "lower", 5.0),
        Row(f"{work}: CPU time beside a copy", ours["cpu_seconds"], copy["cpu_seconds"], COPY, "CPU s", "lower", 5.0),
    ]


def merged(side: str, scratch: Path) -> dict[str, float]:
    """Merge once in a fresh process."""
    fresh(scratch / side)
    return json.loads(child(side, scratch).splitlines()[-1])


def copied(scratch: Path) -> dict[str, float]:
    """Copy the base's files once with `cp`."""
    fresh(scratch / "copy")
    began, began_cpu = time.perf_counter(), cpu_seconds()
    subprocess.run(["cp", "-r", f"{scratch / 'base'}/.", str(scratch / "copy")], check=True)
    return {"seconds": time.perf_counter() - began, "cpu_seconds": cpu_seconds() - began_cpu}


def fresh(directory: Path) -> None:
    """Empty a directory, and wait until the disk has what earlier runs wrote."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    os.sync()


def child(what: str, scratch: Path, *sizes: int) -> str:
    """Run the child and return what it printed."""
    command = [sys.executable, "-m", "benchmarks._merge_child", what, str(scratch), *map(str, sizes)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def require_equal(ours: Path, theirs: Path) -> None:
    """Refuse to compare the speed of different results."""
    left, right = (
        {entry.name: entry for entries in model_entries(out).values() for entry in entries} for out in (ours, theirs)
    )
    if set(left) != set(right):
        raise SystemExit(f"The two sides wrote different tensors: {sorted(set(left) ^ set(right))[:5]}")
    for name in left:
        if not (read_rows(left[name]) == read_rows(right[name])).all():
            raise SystemExit(f"The two sides wrote different values for {name}: their speed says nothing.")


if __name__ == "__main__":
    main("merge", measure)
