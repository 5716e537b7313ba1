"""The `inference` block of a lineage: which rows are answered, in which portions, by which variant, and how well."""

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator

from llm_assets.core import Config
from llm_assets.engine.tasks import EngineConfig, GenerationConfig

PLACEHOLDER = "{partition}"


class StaticPartitions(Config):
    """A fixed list of portions."""

    type: Literal["static"] = "static"
    keys: tuple[str, ...] = Field(min_length=1, description="Partition keys; each names one input file.")

    @field_validator("keys")
    @classmethod
    def _usable_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"partition keys {', '.join(repeated)} occur twice. List each key once.")
        if bad := [key for key in keys if not key or "..." in key or "/" in key or "," in key]:
            raise ValueError(f"partition keys {bad} are empty or hold '...', '/' or ','. Use letters, digits, _ and -.")
        return keys


class DailyPartitions(Config):
    """One portion per day; its key is the date, such as 2025-01-31."""

    type: Literal["daily"] = "daily"
    start: date = Field(description="First day.")
    timezone: str = Field(default="UTC", description="IANA time zone in which a day ends.")

    @field_validator("timezone")
    @classmethod
    def _known_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"timezone {timezone!r} is unknown. Use an IANA name, such as Europe/Berlin.") from error
        return timezone


class GenerationOverrides(Config):
    """Sampling settings that differ from those the registered version was evaluated with."""

    temperature: float | None = Field(default=None, ge=0.0, le=2.0, description="0 is greedy decoding.")
    max_new_tokens: int | None = Field(default=None, ge=1, description="Completion tokens after which a row is cut.")
    top_p: float | None = Field(default=None, gt=0.0, le=1.0, description="Nucleus sampling.")
    stop: tuple[str, ...] | None = Field(default=None, description="Texts that end a completion.")
    seed: int | None = Field(default=None, ge=0, description="Seed of the rows' own seeds.")

    def over(self, registered: Mapping[str, Any]) -> GenerationConfig:
        """The registered version's settings with these on top."""
        return GenerationConfig.model_validate({**registered, **self.model_dump(exclude_none=True)})


class InferenceConfig(Config):
    """Partitioned batch inference with the champion."""

    inputs: str = Field(description="Path or glob of a partition's rows (parquet, csv, json, jsonl) with {partition}.")
    partitions: Annotated[StaticPartitions | DailyPartitions, Field(discriminator="type")] = Field(
        description="The portions that are run, checked and re-run on their own."
    )
    variant: str = Field(default="merged", description="`merged`, or the name of a quantized variant of the version.")
    generation: GenerationOverrides = Field(default=GenerationOverrides(), description="Changes to the defaults.")
    engine: EngineConfig = Field(default=EngineConfig(), description="Sizes of the inference engine.")
    max_error_share: float = Field(default=0.01, ge=0, le=1, description="Rows of a partition that may fail.")
    max_empty_share: float = Field(default=0.01, ge=0, le=1, description="Answers of a partition that may be empty.")
    max_length_capped_share: float = Field(
        default=0.05, ge=0, le=1, description="Answers of a partition that may end at max_new_tokens."
    )
    max_partitions_per_run: int = Field(
        default=16, ge=1, description="Partitions of a backfill answered by one engine."
    )
    freshness_hours: float | None = Field(default=None, gt=0, description="Age at which an input file is too old.")
    cost_per_hour_usd: float = Field(default=0.0, ge=0, description="Price of the machine the engine runs on.")

    @field_validator("inputs")
    @classmethod
    def _one_file_per_partition(cls, inputs: str) -> str:
        if PLACEHOLDER not in inputs:
            raise ValueError(
                f"inference.inputs {inputs!r} has no {PLACEHOLDER}, so all partitions would read the same rows. "
                f"Write it where the key goes, such as questions/{PLACEHOLDER}.parquet."
            )
        return inputs

    def inputs_of(self, partition: str) -> str:
        """Path or glob of one partition's rows."""
        return self.inputs.replace(PLACEHOLDER, partition)
