"""What is registered under a name, readable without downloading a weight.

Everything shown is what the version says about itself: whoever is handed a name needs nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_assets.interface.display import Page, Panel, Readable, bytes_shown
from llm_assets.registry.config import MERGED
from llm_assets.registry.tracking_store import TrackingStore, redacted
from llm_assets.registry.versions import find, reader


@dataclass(frozen=True, repr=False)
class ModelInfo(Readable):
    """A registered version, as it describes itself.

    Attributes:
        name: Registered name.
        version: Version number.
        aliases: Aliases that point to it.
        run_id: MLflow run with its parameters and metrics.
        registry: Where it is registered.
        metadata: As `registry.contents.describe` made it.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    run_id: str
    registry: str
    metadata: Mapping[str, Any]

    @property
    def uri(self) -> str:
        """MLflow's URI of the version."""
        return f"models:/{self.name}/{self.version}"

    @property
    def generation(self) -> Mapping[str, Any]:
        """The sampling settings its scores were measured with."""
        return self.metadata["generation"]

    @property
    def variants(self) -> tuple[str, ...]:
        """What can answer: the merged model and every quantized variant."""
        return (MERGED, *self.metadata["variants"])

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        """The scoreboard: candidate to its metrics on the held-out rows."""
        return self.metadata["scoreboard"]["candidates"]

    def page(self) -> Page:
        """Scores, sizes, settings, prompt and origin."""
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return Page(
            f"{self.name} version {self.version}{aliases}",
            (
                Panel("Model", self._model()),
                self._scoreboard(),
                Panel("Generation defaults", list(self.generation.items())),
                Panel("Token lengths in training", self._lengths(), header=("", "p50", "p90", "p99", "longest")),
                Panel("Prompts", [(p["uri"], _one_line(p["template"])) for p in self.metadata.get("prompts", ())]),
                Panel("Training", self._training()),
                Panel("Origin", self._origin()),
            ),
        )

    def _model(self) -> list[tuple[str, Any]]:
        shape, served = self.metadata["architecture"], self.metadata.get("served", {})
        return [
            ("architecture", shape["class"]),
            ("parameters", shape["parameters"]),
            ("context tokens", shape["context_tokens"]),
            ("base model", self.metadata.get("base")),
            ("task", self.metadata.get("task")),
            ("input", _columns(served.get("input_columns"))),
            ("output", _columns(served.get("output_columns")) or "the completion"),
        ]

    def _scoreboard(self) -> Panel:
        board = self.metadata["scoreboard"]
        metrics = list(dict.fromkeys([board["primary"], *board.get("metrics", ()), "loss"]))
        known = [name for name in metrics if any(name in line for line in self.scores.values())]
        rows = [
            (name, *(line.get(metric) for metric in known), bytes_shown(line.get("bytes")), *_speed(line))
            for name, line in self.scores.items()
        ]
        header = ("", *(name.replace("_", " ") for name in known), "size", "tokens/s", "engine")
        return Panel(f"Scores on {board['rows']:,} held-out rows", rows, header)

    def _lengths(self) -> list[tuple[Any, ...]]:
        lengths = self.metadata["lengths"]
        return [(part, *(lengths[part][p] for p in ("p50", "p90", "p99", "p100"))) for part in ("prompt", "completion")]

    def _training(self) -> list[tuple[str, Any]]:
        record = self.metadata["training"]
        losses = ("evaluation_loss", "base_evaluation_loss", "final_loss", "steps", "method")
        found = [(name.replace("_", " "), record[name]) for name in losses if name in record]
        return [*found, *sorted(record.get("parameters", {}).items())]

    def _origin(self) -> list[tuple[str, Any]]:
        tags = [(name, value) for name, value in sorted(self.metadata.get("tags", {}).items())]
        return [
            ("lineage", self.metadata["model"]),
            ("registry", self.registry),
            ("uri", self.uri),
            ("mlflow run", self.run_id),
            *tags,
            *((f"{asset} fingerprint", value) for asset, value in self.metadata["fingerprints"].items()),
        ]


def get_model_info(name: str, version: str | int | None = None, tracking_uri: str | None = None) -> ModelInfo:
    """Look up a registered version.

    Args:
        name: Registered name, such as `text2sql` or `prod.sql.text2sql`.
        version: Number or alias; None takes the champion, else the newest version.
        tracking_uri: MLflow's; None takes the environment's.

    Raises:
        VersionUnknown: lists the registered names, or the versions and aliases of this one.
        TrackingUnavailable: MLflow does not answer.
    """
    from mlflow.models import get_model_info as read_model

    store = TrackingStore.resolve(tracking_uri)
    with store.reached():
        client = reader(store)
        found = find(client, name, wanted_version(client, name, version), store.tracking_uri)
        model = read_model(f"models:/{name}/{found.version}")
    return ModelInfo(
        name=name,
        version=str(found.version),
        aliases=tuple(found.aliases),
        run_id=found.run_id,
        registry=redacted(store.registry_uri),
        metadata=model.metadata or {},
    )


def wanted_version(client: Any, name: str, version: str | int | None) -> str:
    """The version or alias to look up when none is named: the champion, else the newest."""
    if version is not None:
        return str(version)
    models = [model for model in client.search_registered_models() if model.name == name]
    if not models or "champion" in models[0].aliases:
        return "champion"
    return str(max(int(entry.version) for entry in client.search_model_versions(f"name = '{name}'")))


def _columns(columns: Mapping[str, str] | None) -> str | None:
    return ", ".join(f"{name}: {kind}" for name, kind in columns.items()) if columns else None


def _one_line(template: str | Sequence[Mapping[str, str]]) -> str:
    text = template if isinstance(template, str) else " / ".join(turn["content"] for turn in template)
    return " ".join(text.split())[:100]


def _speed(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line.get("tokens_per_second"), line.get("engine")
