"""A merge in words and as a picture: what decided the policy, and where in the model the adapter changed most."""

import re
from collections.abc import Mapping
from typing import Any

from llm_assets import charts

LAYER = re.compile(r"\.(\d+)\..*?([^.]+)\.weight$")


def policy_decision(record: Mapping[str, Any]) -> str:
    """One sentence on which weights the adapter was merged into, and why."""
    if record["held_out_loss"]:
        measured = ", ".join(f"{policy} {loss:.5f}" for policy, loss in record["held_out_loss"].items())
        return f"{record['policy']}: lowest loss of the saved models on validation rows ({measured} nats per token)."
    if not record["quantized_modules"]:
        return "Nothing was trained in 4 bit: every policy is the same merge."
    return f"{record['policy']}, as merge.policy says; auto would measure both."


def largest_changes(record: Mapping[str, Any], count: int = 10) -> list[dict[str, Any]]:
    """The weights that changed most relative to their norm, with what each step loses of the change."""
    return sorted(record["modules"], key=lambda module: -module["delta_share"])[:count]


def change_by_layer(record: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    """Points of (layer, change in % of the weight's norm) by kind of module, such as q_proj."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for module in record["modules"]:
        if found := LAYER.search(module["name"]):
            lines.setdefault(found[2], []).append((int(found[1]), 100 * module["delta_share"]))
    return {name: sorted(points) for name, points in sorted(lines.items())}


def change_picture(record: Mapping[str, Any]) -> bytes | None:
    """PNG of the relative change over the depth of the model; None where no layer was adapted."""
    lines = change_by_layer(record)
    if not lines:
        return None
    kept = f"{record['dtype']} rounds away {record['mean_rounding_share']:.1%} of it on average"
    return charts.line_chart(f"Change by the adapter; {kept}", "layer", "change, % of the weight's norm", lines)
