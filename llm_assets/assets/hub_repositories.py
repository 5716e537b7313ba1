"""The champion on the Hugging Face Hub; made only where the YAML has a `registry.hub` block."""

import json

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, table
from llm_assets.registry.hub import push_version
from llm_assets.registry.hub_config import HubConfig
from llm_assets.registry.versions import load_version
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking


def build_hub_repositories(lineage: Lineage, hub: HubConfig, base: str | None) -> dg.AssetsDefinition:
    """The `hub_repositories` asset; `base` is the Hub repository of the base model, if it comes from there."""

    @lineage.asset(
        "hub_repositories",
        stage="registry",
        kinds={"huggingface"},
        version="1",
        settings=[hub],
        deps=[lineage.key("champion")],
    )
    def hub_repositories(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """The champion's merged model, adapter and variants, each in a repository on the Hugging Face Hub.

        Files that are there already are not sent again. The token comes from `HF_TOKEN`.
        """
        promoted = json.loads(
            (store.open(context.instance, lineage.key("champion")).path / "champion.json").read_text()
        )
        mlflow = tracking.store()
        version = load_version(promoted["name"], promoted["version"], mlflow.tracking_uri, mlflow.separate_registry_uri)
        version.require_promoted()
        pushed = push_version(version, hub, base, context.log.info)
        record = {"name": version.name, "version": version.version, "commits": {p.repo: p.commit for p in pushed}}
        with store.staging() as staged:
            (staged / "hub.json").write_text(json.dumps(record, indent=1, sort_keys=True))
            artifact = store.publish(context.asset_key, staged)
        lines = [
            {"part": p.part, "repository": p.repo, "commit": p.commit, "sent_files": p.uploaded_files} for p in pushed
        ]
        return materialized(
            artifact,
            {
                "version": int(version.version),
                "uploaded_files": sum(p.uploaded_files for p in pushed),
                "uploaded_bytes": sum(p.uploaded_bytes for p in pushed),
                "repositories": table(lines),
                "private": hub.private,
            },
        )

    return hub_repositories
