"""What the answers of every partition took: tokens, engine time and its price.

Counted per partition for the answers that are current; an answer taken over from an earlier run keeps its share of that
run's time, so re-running a partition never makes it look free.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from llm_assets.inference.outputs import read_run

USAGE = pa.schema(
    [
        ("partition", pa.string()),
        ("rows", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("tokens_per_second", pa.float64()),
        ("cost_usd", pa.float64()),
    ]
)


def token_usage(outputs: Mapping[str, Path], cost_per_hour_usd: float) -> pa.Table:
    """One row per partition, in the order given.

    Args:
        outputs: Published outputs by partition.
        cost_per_hour_usd: Price of the machine the engine ran on.

    Returns:
        Table of `USAGE`; `tokens_per_second` counts completion tokens over engine time, start-up excluded.
    """
    runs = {partition: read_run(directory) for partition, directory in outputs.items()}
    rows = [
        {
            "partition": partition,
            **{name: run[name] for name in ("rows", "prompt_tokens", "completion_tokens", "tokens_per_second")},
            "cost_usd": run["seconds"] / 3600 * cost_per_hour_usd,
        }
        for partition, run in runs.items()
    ]
    return pa.Table.from_pylist(rows, schema=USAGE)
