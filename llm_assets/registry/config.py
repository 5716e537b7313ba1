"""Under which name and aliases a model is registered, and what a version must reach to become the one in use."""

import re
from typing import Self

from pydantic import Field, field_validator, model_validator

from llm_assets.core import Config

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
    variants: tuple[str, ...] | None = Field(
        default=None, description="Quantized variants stored in the version; all of the lineage's when left out."
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
        if name is not None and not re.fullmatch(r"[\w-]+(\.[\w-]+\.[\w-]+)?", name):
            raise ValueError(
                f"registry.name {name!r} is neither flat (text2sql) nor catalog.schema.model (prod.sql.text2sql). "
                "Use letters, digits, - and _ in each part."
            )
        return name

    @field_validator("alias", "challenger_alias")
    @classmethod
    def _alias_mlflow_accepts(cls, alias: str | None) -> str | None:
        reserved = alias is not None and (alias.lower() == "latest" or re.fullmatch(r"v\d+", alias.lower()))
        if alias is not None and (reserved or not re.fullmatch(r"[\w-]+", alias)):
            raise ValueError(
                f"alias {alias!r} is reserved or not a name: `latest`, `v1` and the like mean versions. Use champion."
            )
        return alias

    @model_validator(mode="after")
    def _two_aliases(self) -> Self:
        if self.alias == self.challenger_alias:
            raise ValueError(
                f"alias and challenger_alias are both {self.alias!r}: registering would promote without the gate. "
                "Name them apart, or set challenger_alias to null."
            )
        return self

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
