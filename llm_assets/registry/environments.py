"""Where a version goes from here: staging, prod, each a registered name in this or another registry.

An environment has a gate of its own: what is promoted there is compared with what is in use there.
"""

from typing import Self

from pydantic import Field, field_validator, model_validator

from llm_assets.core import Config
from llm_assets.registry.names import check_alias, check_name
from llm_assets.registry.tracking_store import TrackingStore, redacted


class EnvironmentConfig(Config):
    """One entry of `registry.environments`; it becomes the asset `<model>/environment/<label>`."""

    label: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="Last part of the asset key, such as prod.")
    name: str = Field(description="Registered name there, flat or catalog.schema.model.")
    tracking_uri: str | None = Field(
        default=None, description="MLflow there, if it is another one: its tracking server or database."
    )
    registry_uri: str | None = Field(
        default=None, description="Registry there, if it is not the tracking server, such as databricks-uc."
    )
    artifact_root: str | None = Field(
        default=None, description="Where artifacts go there, without a server; unset takes the project's own."
    )
    alias: str = Field(default="champion", description="Alias of the version in use there.")
    automatic: bool = Field(
        default=False, description="Promote without a person whenever the environment before it changes."
    )

    @field_validator("name")
    @classmethod
    def _name_mlflow_accepts(cls, name: str) -> str:
        return check_name(name, "registry.environments.name")

    @field_validator("alias")
    @classmethod
    def _alias_mlflow_accepts(cls, alias: str) -> str:
        return check_alias(alias)

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        for field in ("tracking_uri", "registry_uri"):
            uri = getattr(self, field)
            if uri and redacted(uri) != uri and not uri.startswith("sqlite"):
                raise ValueError(
                    f"environments.{field} {redacted(uri)} carries a password. Write it without, and set "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
                )
        return self

    def store(self, own: TrackingStore) -> TrackingStore:
        """The registry of this environment; `own` is the lineage's, taken where nothing else is said."""
        if not self.tracking_uri:
            root, registry_uri = self.artifact_root or own.artifact_root, self.registry_uri or own.separate_registry_uri
            return TrackingStore(own.tracking_uri, root, registry_uri)
        return TrackingStore.resolve(self.tracking_uri, self.artifact_root, self.registry_uri)
