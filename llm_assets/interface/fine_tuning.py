"""Fine-tune a model by one call: the arguments become a lineage, and the lineage is materialized.

There is no second training path: data checks, study, merge, evaluation, registration and gate are the deployment's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel

from llm_assets.components.lineage import LineageConfig
from llm_assets.components.published import without_passwords
from llm_assets.interface.arguments import ArgumentsInvalid, lineage_blocks, lineage_config
from llm_assets.interface.deployed import deployed_job, make_pending, refuse_differences
from llm_assets.interface.display import Page, Panel, Readable
from llm_assets.interface.graphql import DagsterAPI
from llm_assets.interface.local_dagster import run_lineage
from llm_assets.interface.progress import Log
from llm_assets.training import BaseModelConfig

COMPONENT = "llm_assets.components.lineage.LLMLineage"
LOCAL_UI = "http://localhost:3000"


@dataclass(frozen=True, repr=False)
class FineTuningResult(Readable):
    """A finished fine-tuning.

    Attributes:
        model_name: Registered name.
        model_version: Version that was registered, or found to hold the same already.
        champion_version: Version the champion's alias points to.
        training_loss: Loss of the last training steps, in nats per token.
        evaluation_loss: Loss on validation rows, likewise.
        run_id: Dagster run that made what was pending; where nothing was, the one that read the sources.
        links: Where to look: the run, the version.
        lineage: What was materialized, as `defs.yaml` would say it; of a remote run, what is deployed.
    """

    model_name: str
    model_version: str
    champion_version: str
    training_loss: float
    evaluation_loss: float | None
    run_id: str
    links: Mapping[str, str]
    lineage: Mapping[str, Any] = field(default_factory=dict)

    def page(self) -> Page:
        """Version, losses and links."""
        return Page(
            f"{self.model_name} version {self.model_version}",
            (
                Panel(
                    "Result",
                    (
                        ("training loss", self.training_loss),
                        ("evaluation loss", self.evaluation_loss),
                        ("champion", f"version {self.champion_version}"),
                        ("run", self.run_id),
                    ),
                ),
                Panel("Links", list(self.links.items())),
            ),
        )

    def to_yaml(self) -> str:
        """The lineage as a `defs.yaml`, to deploy what was tried here."""
        return yaml.safe_dump({"type": COMPONENT, "attributes": dict(self.lineage)}, sort_keys=False)


def run_fine_tuning(
    *,
    model_name: str,
    training_table_name: str | Mapping[str, Any] | None = None,
    base_model: str | Mapping[str, Any] | None = None,
    data_config: BaseModel | Mapping[str, Any] | None = None,
    lora_config: BaseModel | Mapping[str, Any] | None = None,
    training_config: BaseModel | Mapping[str, Any] | None = None,
    input_schema: Any = None,
    output_schema: Any = None,
    trigger_remote: bool = False,
    dagster_url: str | None = None,
    log: Log = print,
    **blocks: Any,
) -> FineTuningResult:
    """Fine-tune, evaluate, register and promote a model, here or on the deployed Dagster.

    Args:
        model_name: Registered name, flat or `catalog.schema.model`.
        training_table_name: `catalog.schema.table`, `file.duckdb::table`, file, glob or URL with the rows; or a whole
            `sources` entry.
        base_model: Short name in the catalog (`llm-assets models`), a local directory, `module:function`, or a
            `base_model` block with hub and revision.
        data_config: How rows are read and asked; a `DataConfig` or its fields.
        lora_config: The adapter; a `LoraConfig` or its fields.
        training_config: The training; a `TrainingConfig` or its fields.
        input_schema: Columns of the served version, as `{prompt: string}` or an MLflow schema.
        output_schema: Likewise for its answers.
        trigger_remote: Run on the deployed Dagster, with its configuration; arguments that differ are refused.
        dagster_url: Its web server; None takes LLM_ASSETS_DAGSTER_URL.
        log: Receives progress lines.
        blocks: Any other block of a lineage under its YAML name: `study`, `quantization`, `evaluation`, `merge`, …

    Returns:
        The registered version with its losses, run and links.

    Raises:
        ArgumentsInvalid: lists every wrong argument, before any work.
        LocalRunFailed: a step or check failed here; names it.
        NotDeployed, DiffersFromDeployed, RemoteRunFailed, DagsterUnreachable: with `trigger_remote`.
    """
    given = lineage_blocks(
        training_table_name=training_table_name,
        model_name=model_name,
        base_model=base_model,
        data_config=data_config,
        lora_config=lora_config,
        training_config=training_config,
        input_schema=input_schema,
        output_schema=output_schema,
        blocks=blocks,
    )
    if trigger_remote:
        return _remotely(given, model_name, DagsterAPI.resolve(dagster_url), log)
    missing = [name for name, value in _REQUIRED_HERE.items() if value not in given]
    if missing:
        raise ArgumentsInvalid(
            f"{' and '.join(missing)} missing. Name the rows and the base model to fine-tune here, or pass "
            "trigger_remote=True to run the lineage that is deployed."
        )
    return _here(lineage_config(given), log)


_REQUIRED_HERE = {"training_table_name": "sources", "base_model": "base_model"}


def _here(config: LineageConfig, log: Log) -> FineTuningResult:
    run = run_lineage(config, log)
    links = {"run": f"{LOCAL_UI}/runs/{run.run_ids[-1]}  (make dev)"}
    lineage = config.model_dump(mode="json", exclude_unset=True)
    return _result(
        config.model, config.registry.registered_name(config.model), run.run_ids[-1], run.assets, links, lineage
    )


def _remotely(given: dict[str, Any], model_name: str, api: DagsterAPI, log: Log) -> FineTuningResult:
    job, deployed = deployed_job(api, model_name, "_train")
    asked = {name: block for name, block in given.items() if name != "model"}
    if "base_model" in asked:
        named = BaseModelConfig.model_validate(asked["base_model"])
        asked["base_model"] = named.model_dump(mode="json", exclude_unset=True)
    refuse_differences(without_passwords(asked), deployed)  # which is told without them too
    run_id = make_pending(api, job, deployed["model"], log)
    assets = {asset.key: asset.metadata for asset in api.assets(job)}
    name = deployed["registry"]["name"] or deployed["model"]
    links = {"run": api.run_link(run_id)} if run_id else {}
    return _result(deployed["model"], name, run_id or "none", assets, links, deployed)


def _result(
    model: str,
    name: str,
    run_id: str,
    assets: Mapping[str, Mapping[str, Any]],
    links: Mapping[str, str],
    lineage: Mapping[str, Any],
) -> FineTuningResult:
    adapter, registered = assets[f"{model}/lora_adapter"], assets[f"{model}/registered_version"]
    return FineTuningResult(
        model_name=name,
        model_version=str(registered["version"]),
        champion_version=str(assets[f"{model}/champion"]["version"]),
        training_loss=float(adapter["final_loss"]),
        evaluation_loss=adapter.get("evaluation_loss"),
        run_id=run_id,
        links={**links, "version": str(registered["mlflow"]), "uri": str(registered["mlflow_uri"])},
        lineage=lineage,
    )
