"""Under which name and aliases a model is registered, and what a version must reach to become the one in use."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from llm_assets.core import Config
from llm_assets.registry.asking import Served
from llm_assets.registry.environments import EnvironmentConfig
from llm_assets.registry.hub_config import HubConfig
from llm_assets.registry.names import check_alias, check_name
from llm_assets.registry.signature import Columns, Task, default_input, refuse_unusable

MERGED = "merged"


class RegistryConfig(Config):
    """The `registry` block of a lineage."""

    name: str | None = Field(
        default=None, description="Registered name, flat or catalog.schema.model; the lineage's model when left out."
    )
    alias: str = Field(default="champion", description="Alias of the version in use.")
    challenger_alias: str | None = Field(
        default="challenger", description="Alias of the newest registered version; null sets none."
    )
    task: Task = Field(
        default="llm/v1/completions", description="What a served version does: complete a prompt, or continue a chat."
    )
    input_schema: Columns | None = Field(
        default=None,
        description="Input columns of the served version and their types; unset is {prompt: string}, or messages for "
        "llm/v1/chat. Columns other than these fill the lineage's prompt.",
    )
    output_schema: Columns | None = Field(
        default=None,
        description="Output columns: one for the text, and any of finish_reason, prompt_tokens, completion_tokens; "
        "unset gives the text alone.",
    )
    variants: tuple[str, ...] | None = Field(
        default=None, description="Quantized variants stored in the version; all of the lineage's when left out."
    )
    environments: tuple[EnvironmentConfig, ...] = Field(
        default=(), description="Where the champion goes from here, in order, such as staging and prod."
    )
    hub: HubConfig | None = Field(
        default=None, description="Push the champion to the Hugging Face Hub; nothing is pushed when left out."
    )
    min_metrics: dict[str, float] = Field(
        default={}, description="Scoreboard values the merged model must reach, such as execution_accuracy: 0.8."
    )
    max_regression: float = Field(
        default=0.02, ge=0, le=1, description="How much worse than the champion the primary metric may be."
    )
    min_common_rows: int = Field(
        default=20,
        ge=0,
        description="Held-out rows shared with the champion's evaluation; 0 compares none.",
    )

    @field_validator("name")
    @classmethod
    def _name_mlflow_accepts(cls, name: str | None) -> str | None:
        return name if name is None else check_name(name)

    @field_validator("alias", "challenger_alias")
    @classmethod
    def _alias_mlflow_accepts(cls, alias: str | None) -> str | None:
        return alias if alias is None else check_alias(alias)

    @field_validator("environments")
    @classmethod
    def _distinct_environments(cls, environments: tuple[EnvironmentConfig, ...]) -> tuple[EnvironmentConfig, ...]:
        labels = [environment.label for environment in environments]
        if repeated := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"registry.environments has the label {', '.join(repeated)} twice. Name each differently.")
        return environments

    @model_validator(mode="after")
    def _usable_schemas(self) -> Self:
        refuse_unusable(self.input_columns, self.output_schema, self.task)
        return self

    @model_validator(mode="after")
    def _two_aliases(self) -> Self:
        if self.alias == self.challenger_alias:
            raise ValueError(
                f"alias and challenger_alias are both {self.alias!r}: registering would promote without the gate. "
                "Name them apart, or set challenger_alias to null."
            )
        return self

    @property
    def input_columns(self) -> dict[str, str]:
        """Input columns of the served version."""
        return dict(default_input(self.task) if self.input_schema is None else self.input_schema)

    def served(self, row_format: Mapping[str, Any] | None, base: str) -> Served:
        """How callers of a version are understood; `row_format` and `base` are the lineage's."""
        columns = dict(self.output_schema) if self.output_schema else None
        return Served(self.task, self.input_columns, columns, row_format, base)

    def is_manual(self, path: Sequence[str]) -> bool:
        """Whether the asset at `path` below the model waits for a person: an environment, or the push to the Hub."""
        manual = [["environment", each.label] for each in self.environments if not each.automatic]
        manual += [["hub_repositories"]] if self.hub and not self.hub.automatic else []
        return list(path) in manual

    def registered_name(self, model: str) -> str:
        """Name in the registry of a lineage's model."""
        return self.name or model

    def chosen_variants(self, made: tuple[str, ...]) -> tuple[str, ...]:
        """Variants to store, of those the lineage makes.

        Raises:
            ValueError: one is listed that the lineage does not make.
        """
        if self.variants is None:
            return made
        if unknown := [name for name in self.variants if name not in made]:
            raise ValueError(
                f"registry.variants lists {', '.join(unknown)}, which this lineage does not make. "
                f"Choose from: {', '.join(made) or 'none, because quantization is empty'}."
            )
        return self.variants
