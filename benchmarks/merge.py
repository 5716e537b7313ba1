"""Folding an adapter into a 300 M-parameter Llama: shard by shard, against peft's `merge_and_unload`.

Each merge has its own process. Times are of reading, merging and writing, imports left out; memory is
the peak of the whole process, imports and mapped pages included. Both sides must write the same weights up to
rounding, or the benchmark ends.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks._harness import Row, interleaved, main
from llm_assets.training.shards import shard_names

ANCHOR = "peft `merge_and_unload`"
BFLOAT16_STEP = 2**-8


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Seconds, CPU seconds and peak memory of both merges."""
    hidden, layers = (256, 10) if quick else (1024, 16)
    child("prepare", scratch, hidden, layers)
    sides = {"ours": lambda: merged("ours", scratch), ANCHOR: lambda: merged("peft", scratch)}
    found = interleaved(sides, rounds=1 if quick else 3)
    require_equal(scratch / "ours", scratch / "peft")
    parameters = "19 M" if quick else "301 M"
    rows = []
    for metric, work, unit, goal in (
        ("seconds", "time", "s", 1.0),
        ("cpu_seconds", "CPU time", "CPU s", 0.8),
        ("peak_mib", "peak memory", "MiB", 0.6),
    ):
        medians = found["ours"][metric], found[ANCHOR][metric]
        rows.append(Row(f"Merge of {parameters} parameters: {work}", *medians, ANCHOR, unit, "lower", goal))
    return rows


def merged(side: str, scratch: Path) -> dict[str, float]:
    """Merge once in a fresh process."""
    return json.loads(child(side, scratch).splitlines()[-1])


def child(what: str, scratch: Path, *sizes: int) -> str:
    """Run the child and return what it printed."""
    command = [sys.executable, "-m", "benchmarks._merge_child", what, str(scratch), *map(str, sizes)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def require_equal(ours: Path, theirs: Path) -> None:
    """Refuse to compare the speed of different results, up to how bfloat16 rounds the two orders of adding."""
    from safetensors.torch import load_file

    left, right = (
        {name: tensor for shard in shard_names(out) for name, tensor in load_file(out / shard).items()}
        for out in (ours, theirs)
    )
    for name, tensor in right.items():
        bound = BFLOAT16_STEP * tensor.float().abs().clamp(min=1e-3)
        if not ((left[name].float() - tensor.float()).abs() <= 2 * bound).all():
            raise SystemExit(f"The two sides wrote different values for {name}: their speed says nothing.")
    if set(left) != set(right):
        raise SystemExit(f"The two sides wrote different tensors: {sorted(set(left) ^ set(right))[:5]}")


if __name__ == "__main__":
    main("merge", measure)
