"""The demo's one-screen report, read from the published artifacts and the event log: nothing is computed again."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from llm_assets.defs.runtime import home
from llm_assets.resources.artifact_store import ArtifactStore, read_manifest


class Built:
    """The current artifacts of a lineage, by asset name."""

    def __init__(self, instance: dg.DagsterInstance, model: str) -> None:
        self.instance, self.model = instance, model
        self.store = ArtifactStore(root=str(home() / "artifacts"))

    def path(self, asset: str, partition: str | None = None) -> Path:
        """Directory of an asset's current artifact."""
        return self.store.open(self.instance, dg.AssetKey([self.model, *asset.split("/")]), partition).path

    def json(self, asset: str, name: str) -> dict[str, Any]:
        """One JSON file of an asset's current artifact."""
        return json.loads((self.path(asset) / name).read_text())

    def bytes(self, asset: str) -> int:
        """Size of an asset's current artifact."""
        return read_manifest(self.path(asset))["bytes"]


def print_report(instance: dg.DagsterInstance, definitions: dg.Definitions, model: str, elapsed_seconds: float) -> None:
    """Print what was built, asset by asset, and how to look at it."""
    built = Built(instance, model)
    graph = definitions.resolve_asset_graph()
    keys = [key for key in graph.toposorted_asset_keys if key.path[0] == model]
    checks = [key for asset in keys for key in sorted(graph.get_check_keys_for_assets({asset}))]
    sections = (
        ("Data", data_lines(built)),
        ("Study and training", training_lines(built)),
        ("Held-out rows", scoreboard_lines(built)),
        ("Registry", registry_lines(built)),
        ("Inference", inference_lines(built)),
        ("Seconds per asset", seconds_lines(instance, keys)),
        ("Asset checks", check_lines(instance, checks)),
    )
    for title, lines in sections:
        print(f"\n{title}\n" + "\n".join(f"  {line}" for line in lines))
    print(f"\n{model}: done in {elapsed_seconds:.0f} s. Look at what was built:")
    print("  make dev         Dagster UI  http://localhost:3000\n  make mlflow-ui   MLflow UI   http://localhost:5000")


def data_lines(built: Built) -> list[str]:
    """Rows in, kept and dropped by reason; tokens and packing."""
    rows, tokens = built.json("chat_dataset", "report.json"), built.json("tokenized_dataset", "statistics.json")
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted(rows["dropped"].items())) or "none"
    splits = ", ".join(f"{name} {count}" for name, count in rows["splits"].items())
    return [
        f"{rows['ingested']} rows ingested, {rows['kept']} kept ({splits}); dropped: {dropped}",
        f"{tokens['tokens']} training tokens, {tokens['supervised_tokens']} supervised, in {tokens['packs']} packs "
        f"({tokens['packing_efficiency']:.1%} full)",
    ]


def training_lines(built: Built) -> list[str]:
    """Trials, best parameters and losses."""
    trials = pq.read_table(built.path("hpo_study") / "trials.parquet").column("state").to_pylist()
    best, training = built.json("hpo_study", "best.json"), built.json("lora_adapter", "training.json")
    counts = ", ".join(f"{trials.count(state)} {state.lower()}" for state in sorted(set(trials)))
    parameters = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in best["parameters"].items()
    )
    losses = [training["base_evaluation_loss"], training["evaluation_loss"]]
    before, after = (f"{loss:.3f}" if loss is not None else "not evaluated" for loss in losses)
    return [
        f"{len(trials)} trials: {counts}; best: {parameters}",
        f"evaluation loss {before} before, {after} after {training['steps']} steps",
    ]


def scoreboard_lines(built: Built) -> list[str]:
    """Quality, size and speed of base, merged model and every variant on the same rows."""
    board = built.json("evaluation", "scoreboard.json")
    header = ["", "exact match", "execution acc.", "loss", "MB", "tokens/s", "load s"]
    rows = [
        [
            name,
            f"{c['exact_match']:.1%}",
            f"{c['execution_accuracy']:.1%}",
            f"{c['loss']:.3f}",
            f"{c['bytes'] / 1e6:.2f}",
            f"{c['tokens_per_second']:.0f}",
            f"{c['load_seconds']:.1f}",
        ]
        for name, c in board["candidates"].items()
    ]
    return [f"{board['rows']} rows", *aligned([header, *rows])]


def registry_lines(built: Built) -> list[str]:
    """The model version and the alias that inference follows."""
    registered, champion = built.json("registered_version", "registered.json"), built.json("champion", "champion.json")
    return [
        f"{registered['name']} version {registered['version']}; "
        f"alias {champion['alias']} → version {champion['version']} (before: {champion['previous_version'] or 'none'})"
    ]


def inference_lines(built: Built) -> list[str]:
    """Rows, tokens and speed per partition."""
    usage = pq.read_table(built.path("token_usage") / "usage.parquet").to_pylist()
    header = ["partition", "rows", "prompt tokens", "completion tokens", "tokens/s"]
    rows = [
        [
            u["partition"],
            str(u["rows"]),
            str(u["prompt_tokens"]),
            str(u["completion_tokens"]),
            f"{u['tokens_per_second']:.0f}",
        ]
        for u in usage
    ]
    return aligned([header, *rows])


def seconds_lines(instance: dg.DagsterInstance, keys: Sequence[dg.AssetKey]) -> list[str]:
    """How long the latest materialization of every asset took."""
    return columns(f"{'/'.join(key.path[1:])} {_step_seconds(instance, key):.1f}" for key in keys)


def _step_seconds(instance: dg.DagsterInstance, key: dg.AssetKey) -> float:
    record = instance.get_latest_materialization_event(key)
    if record is None:
        return 0.0
    stats = instance.get_run_step_stats(record.run_id, step_keys=[record.step_key] if record.step_key else None)
    return sum((s.end_time or 0) - (s.start_time or 0) for s in stats if s.end_time and s.start_time)


def check_lines(instance: dg.DagsterInstance, checks: Iterable[dg.AssetCheckKey]) -> list[str]:
    """Every check with its latest verdict; failures (✗) and warnings (!) first and in words."""
    told, passed = [], []
    for key in checks:
        name = f"{'/'.join(key.asset_key.path[1:])}:{key.name}"
        record = instance.get_latest_asset_check_evaluation_record(key)
        event = record.event.dagster_event if record and record.event else None
        if record is None or event is None or record.status.value == "PLANNED":
            told.append(f"✗ {name}: never evaluated")
        elif record.status.value == "SUCCEEDED":
            passed.append(f"✓ {name}")
        else:
            evaluation = event.asset_check_evaluation_data
            mark = "!" if evaluation.severity == dg.AssetCheckSeverity.WARN else "✗"
            told.append(f"{mark} {name}: {evaluation.description}")
    return [*told, *columns(passed)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines: the first column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def columns(items: Iterable[str], per_line: int = 3) -> list[str]:
    """Items side by side, so that a long list stays on one screen."""
    cells = list(items)
    width = max((len(cell) for cell in cells), default=0)
    lines = [cells[i : i + per_line] for i in range(0, len(cells), per_line)]
    return ["  ".join(cell.ljust(width) for cell in line).rstrip() for line in lines]
