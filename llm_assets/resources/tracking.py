"""MLflow as a resource: where versions are registered, and how a run there is found from a Dagster run and back."""

import dagster as dg
from pydantic import Field

from llm_assets.registry.prompts import PromptVersion, load_prompt
from llm_assets.registry.tracking_store import TrackingStore, redacted

DAGSTER_RUN_TAG, DAGSTER_ASSET_TAG = "dagster.run_id", "dagster.asset"


class MLflowTracking(dg.ConfigurableResource):
    """The MLflow tracking server, or the database in LLM_ASSETS_HOME when none is named."""

    tracking_uri: str | None = Field(
        default=None, description="MLflow's URI; unset takes MLFLOW_TRACKING_URI, else LLM_ASSETS_HOME/mlflow.db."
    )
    artifact_root: str | None = Field(
        default=None, description="Where artifacts go without a server; unset takes LLM_ASSETS_HOME/mlartifacts."
    )

    registry_uri: str | None = Field(
        default=None,
        description="Where names, versions and prompts are registered, such as databricks-uc; unset is the tracking "
        "URI, or MLFLOW_REGISTRY_URI where that comes from the environment as well.",
    )

    def store(self) -> TrackingStore:
        """The library's handle on this server or database."""
        return TrackingStore.resolve(self.tracking_uri, self.artifact_root, self.registry_uri)

    def prompt(self, uri: str) -> PromptVersion:
        """The version that `prompts:/name@alias` or `prompts:/name/3` means now; call it once per materialization."""
        return load_prompt(uri, self.store())

    def run_tags(self, context: dg.AssetExecutionContext) -> dict[str, str]:
        """Tags that lead from an MLflow run or version to the Dagster run and asset that made it."""
        return {DAGSTER_RUN_TAG: context.run_id, DAGSTER_ASSET_TAG: context.asset_key.to_user_string()}

    def link(self, name: str, version: str) -> dg.MetadataValue:
        """A version's page on the server, or the command that shows it where there is no server."""
        store = self.store()
        if store.tracking_uri.startswith("http"):
            return dg.MetadataValue.url(
                f"{redacted(store.tracking_uri).rstrip('/')}/#/models/{name}/versions/{version}"
            )
        where = redacted(store.tracking_uri)
        return dg.MetadataValue.text(f"mlflow ui --backend-store-uri {where}  # models:/{name}/{version}")
