"""One `defs.yaml` is one lineage: its YAML schema, and the wiring from its blocks to assets, jobs and sensors.

The schema is made of the library's own frozen configs, so a value is refused at load with the message a notebook gets.
The cost is that `{{ env(...) }}` templates work in text fields only: numbers are checked as written.
"""

from typing import Any, Self

import dagster as dg
from pydantic import BaseModel, Field, TypeAdapter, model_validator

from llm_assets.assets.base_model import build_base_model
from llm_assets.assets.champion import build_champion
from llm_assets.assets.chat_dataset import build_chat_dataset
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.environment import build_environments
from llm_assets.assets.evaluation import build_evaluation
from llm_assets.assets.hpo_study import build_hpo_study
from llm_assets.assets.hub_repositories import build_hub_repositories
from llm_assets.assets.inference_inputs import build_inference_inputs
from llm_assets.assets.inference_outputs import build_inference_outputs
from llm_assets.assets.lora_adapter import build_lora_adapter
from llm_assets.assets.merged_model import build_merged_model
from llm_assets.assets.quantized import build_quantized
from llm_assets.assets.raw_dataset import build_raw_dataset
from llm_assets.assets.registered_version import build_registered_version
from llm_assets.assets.token_usage import build_token_usage
from llm_assets.assets.tokenized_dataset import build_tokenized_dataset
from llm_assets.automation.conditions import nightly_backfill, rebuild_on_change
from llm_assets.automation.inference_job import build_inference_job
from llm_assets.automation.retention import build_retention_job, weekly
from llm_assets.automation.sensors import build_new_data_sensor
from llm_assets.components.published import lineage_metadata
from llm_assets.core import Config
from llm_assets.data import CurationConfig, FormatConfig, SourceConfig, SplitConfig, TokenizationConfig
from llm_assets.evaluation import EvaluationConfig
from llm_assets.inference import InferenceConfig
from llm_assets.quantization import HardwareConfig, QuantizationConfig
from llm_assets.quantization.hardware import find_gpu
from llm_assets.quantization.support import refuse_unsupported
from llm_assets.registry import RegistryConfig
from llm_assets.training import BaseModelConfig, MergeConfig, StudyConfig, TrainingConfig


class AutomationConfig(Config):
    """What happens without a person, where automation runs (`LLM_ASSETS_AUTOMATION=running`)."""

    nightly_cron: str = Field(default="0 2 * * *", description="When missing or outdated partitions are answered.")
    timezone: str = Field(default="UTC", description="IANA time zone of the cron expression.")
    keep_versions: int = Field(default=3, ge=1, description="Newest versions of every artifact that retention keeps.")

    @model_validator(mode="after")
    def _refuse_bad_schedule(self) -> Self:
        try:
            nightly_backfill(self.nightly_cron, self.timezone)
        except Exception as error:
            raise ValueError(
                f"nightly_cron {self.nightly_cron!r} in {self.timezone!r} is no schedule ({error}). "
                "Give five cron fields, such as '0 2 * * *', and an IANA zone, such as 'Europe/Berlin'."
            ) from error
        return self


class LineageConfig(Config):
    """Everything a lineage's YAML may say, block by block in the order data flows."""

    model: str = Field(
        pattern=r"^[a-z][a-z0-9_]{0,62}$",
        description="Name of the lineage: lower-case letters, digits and underscores. Prefixes every asset key.",
    )
    owners: tuple[str, ...] = Field(default=(), description="E-mail addresses or `team:name`, shown on every asset.")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="Where the training rows come from.")
    format: FormatConfig = Field(description="How a source row becomes a conversation.")
    curation: CurationConfig = Field(default=CurationConfig(), description="Which rows are dropped, and why.")
    split: SplitConfig = Field(default=SplitConfig(), description="Shares of train, validation and test.")
    tokenization: TokenizationConfig = Field(default=TokenizationConfig(), description="Template, lengths and packing.")
    base_model: BaseModelConfig = Field(description="The model to fine-tune.")
    study: StudyConfig = Field(default=StudyConfig(), description="The hyper-parameter search.")
    training: TrainingConfig = Field(default=TrainingConfig(), description="How the adapter is trained.")
    merge: MergeConfig = Field(default=MergeConfig(), description="How the adapter is merged into the base.")
    quantization: tuple[QuantizationConfig, ...] = Field(default=(), description="One quantized variant per entry.")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="Held-out rows and metrics.")
    registry: RegistryConfig = Field(default=RegistryConfig(), description="Name and alias of the registered model.")
    inference: InferenceConfig | None = Field(default=None, description="Partitioned inference; none when left out.")
    automation: AutomationConfig = Field(default=AutomationConfig(), description="Schedules and retention.")
    hardware: HardwareConfig = Field(default=HardwareConfig(), description="The machine to plan for, if not this one.")

    @model_validator(mode="after")
    def _refuse_inconsistent_variants(self) -> Self:
        names = [variant.asset_name for variant in self.quantization]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"quantization lists {', '.join(repeated)} more than once. Give each entry its own `name`."
            )
        if self.inference and self.inference.variant not in ("merged", *names):
            raise ValueError(
                f"inference.variant is {self.inference.variant!r}, which this lineage does not make. "
                f"Choose one of: {', '.join(['merged', *names])}."
            )
        self.registry.chosen_variants(tuple(names))
        return self

    @model_validator(mode="after")
    def _refuse_columns_the_prompt_does_not_take(self) -> Self:
        if not getattr(self.format, "template_uri", None):  # that prompt's columns are known when it is resolved
            self.registry.served(self.format.model_dump(mode="json"), self.base_model.source).asked(())
        return self

    @model_validator(mode="after")
    def _refuse_what_could_only_fail_later(self) -> Self:
        self.study.require_defaults(self.training)
        if self.hardware.target:
            for variant in self.quantization:
                refuse_unsupported(variant, find_gpu(self.hardware.target))
        return self


class LLMLineage(dg.Component):
    """Raw rows to a fine-tuned, quantized, registered and used model: the assets of one lineage."""

    def __init__(self, config: LineageConfig) -> None:
        self.config = config

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The YAML schema; Dagster adds file and line to whatever it refuses."""
        return LineageConfig

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What the component produces, for `dg list components`."""
        return dg.ComponentTypeSpec(tags=["llm"], produces=["asset", "asset_check", "sensor", "job"])

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        """Resolve `{{ ... }}` templates in text fields, and check the result again."""
        written = attributes.model_dump(exclude_unset=True) if attributes else {}
        resolved: Any = context.resolution_context.resolve_value(written)
        return cls(TypeAdapter(LineageConfig).validate_python(resolved))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets in the order data flows, with their automation, jobs and sensors."""
        lineage = Lineage(self.config.model, self.config.owners)
        model_assets, inference_assets = self._model_assets(lineage), self._inference_assets(lineage)
        beyond = self._assets_beyond_the_champion(lineage)
        everything = [*model_assets, *beyond, *inference_assets]
        ingest = dg.define_asset_job(
            f"{lineage.model}_ingest",
            selection=[lineage.key("raw_dataset")],
            description="Reads the sources again; what lies below follows if their content changed.",
        )
        train = dg.define_asset_job(
            f"{lineage.model}_train",
            selection=[asset.key for asset in model_assets],
            description="From the source rows to the champion, without inference.",
            metadata=lineage_metadata(self.config),
        )
        answer = build_inference_job(lineage.model, lineage_metadata(self.config))
        retention = build_retention_job(
            lineage.model, [a.key for a in everything], self.config.automation.keep_versions
        )
        patterns = [pattern for source in self.config.sources for pattern in source.watched]
        return dg.Definitions(
            assets=[self._automated(asset) for asset in everything],
            jobs=[ingest, train, answer, retention],
            schedules=[weekly(retention)],
            sensors=[build_new_data_sensor(lineage.model, patterns, ingest.name)] if patterns else [],
        )

    def _model_assets(self, lineage: Lineage) -> list[dg.AssetsDefinition]:
        config = self.config
        variants = [build_quantized(lineage, variant, config.hardware) for variant in config.quantization]
        names = [variant.asset_name for variant in config.quantization]
        own_formats = {source.label: source.row_format for source in config.sources if source.row_format}
        made = [
            build_raw_dataset(lineage, config.sources, config.format, config.split.columns),
            build_chat_dataset(lineage, config.format, config.curation, config.split, own_formats),
            build_tokenized_dataset(lineage, config.tokenization),
            build_base_model(lineage, config.base_model, config.training),
            build_hpo_study(lineage, config.study, config.training),
            build_lora_adapter(lineage, config.training),
            build_merged_model(lineage, config.merge),
            *variants,
            build_evaluation(lineage, config.evaluation, names),
        ]
        registered = build_registered_version(
            lineage,
            config.registry,
            names,
            gate=_check_keys(made),
            row_format=config.format.inlined().model_dump(mode="json"),
            base=config.base_model.source,
        )
        champion = build_champion(lineage, config.registry, gate=_check_keys([*made, registered]))
        return [*made, registered, champion]

    def _assets_beyond_the_champion(self, lineage: Lineage) -> list[dg.AssetsDefinition]:
        registry, base = self.config.registry, self.config.base_model
        environments = build_environments(lineage, registry)
        return [*environments, *([build_hub_repositories(lineage, registry.hub, base.hub)] if registry.hub else [])]

    def _inference_assets(self, lineage: Lineage) -> list[dg.AssetsDefinition]:
        inference = self.config.inference
        if inference is None:
            return []
        inputs = build_inference_inputs(lineage, inference, self.config.format)
        registered_name = self.config.registry.registered_name(lineage.model)
        outputs = build_inference_outputs(lineage, inference, registered_name, gate=_check_keys([inputs]))
        return [inputs, outputs, build_token_usage(lineage, inference)]

    def _automated(self, asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
        automation = self.config.automation
        nightly = nightly_backfill(automation.nightly_cron, automation.timezone)
        condition = nightly if asset.partitions_def else rebuild_on_change()
        if not asset.dependency_keys and not asset.partitions_def:
            return asset  # sources and the base change only by a sensor, a person or the YAML
        if self.config.registry.is_manual(asset.key.path[1:]):
            return asset  # what leaves this environment does so by a person, unless the YAML says otherwise
        return asset.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=condition))


def _check_keys(assets: list[dg.AssetsDefinition]) -> list[dg.AssetCheckKey]:
    return [key for asset in assets for key in asset.check_keys]
