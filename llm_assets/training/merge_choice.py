"""Which weights an adapter is merged into, decided by the loss of both results where nobody said.

Training saw the 4-bit weights; the originals are better weights it never saw. Which wins depends on model and data, so
`auto` saves both, reloads both and scores the same validation rows. The cost is a second merge, two evaluations and,
for as long as that takes, twice the disk.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from llm_assets.training import packs
from llm_assets.training.equivalence import load_stored
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.merge import RECORD, merge_adapter
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merge_plan import plan_merge, require_room

POLICIES: tuple[Literal["dequantized"], Literal["original"]] = ("dequantized", "original")  # the first wins a tie


def merge_by_policy(
    base: Path, adapter: Path, dataset: Path, out: Path, config: MergeConfig, log: Callable[[str], None]
) -> dict[str, Any]:
    """Merge as the config says, deciding policy auto on held-out rows; writes and returns the record.

    Args:
        base: The base the adapter was trained on.
        adapter: Directory of a training run.
        dataset: A tokenized dataset; its first `equivalence_rows` validation rows decide.
        out: An existing directory; the model is written there.
        config: Policy, stored type and number of rows.
        log: Receives a line per shard and per measured policy.

    Returns:
        The record of `merge_adapter`, with `requested_policy` and `held_out_loss`: loss by policy in nats per token,
        empty where nothing had to be decided.

    Raises:
        LLMAssetsError: as `merge_adapter`.
    """
    training = json.loads((adapter / "training.json").read_text())
    if config.policy != "auto":
        return _recorded(out, merge_adapter(base, adapter, out, config, log), config, {})
    if not training["quantized_modules"]:
        log("no module was trained in 4 bit: both policies are the same merge")
        return _recorded(out, merge_adapter(base, adapter, out, _only(config, "original"), log), config, {})
    require_room(out, 2 * plan_merge(base, adapter, out, config.dtype, training).bytes)
    rows = packs.read_rows(dataset, "validation", config.equivalence_rows)
    records, losses = {}, {}
    for policy in POLICIES:
        candidate = out / f"candidate-{policy}"
        candidate.mkdir()
        records[policy] = merge_adapter(base, adapter, candidate, _only(config, policy), log)
        losses[policy] = evaluation_loss(load_stored(candidate), rows)
        log(f"policy {policy}: {losses[policy]:.5f} nats per token on {len(rows)} validation rows")
    chosen = lowest(losses)
    for path in (out / f"candidate-{chosen}").iterdir():
        path.rename(out / path.name)
    for policy in POLICIES:
        shutil.rmtree(out / f"candidate-{policy}")
    return _recorded(out, records[chosen], config, losses)


def lowest(losses: dict[Any, float]) -> Any:
    """The name of the lowest loss, the first of equals; a loss that is not a number never wins over one that is."""
    return min(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)


def _only(config: MergeConfig, policy: Literal["dequantized", "original"]) -> MergeConfig:
    return config.model_copy(update={"policy": policy})


def _recorded(out: Path, record: dict[str, Any], config: MergeConfig, losses: dict[Any, float]) -> dict[str, Any]:
    record = {**record, "requested_policy": config.policy, "held_out_loss": losses}
    (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
    return record
