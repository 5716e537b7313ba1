"""One environment of a model, such as prod: the version in use there, copied from the environment before it."""

import json
from collections.abc import Iterator

import dagster as dg

from llm_assets.assets.conventions import Lineage, check_event, materialized, table
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.copying import copy_version
from llm_assets.registry.environments import EnvironmentConfig
from llm_assets.registry.history import history_rows, read_history
from llm_assets.registry.succession import Throne
from llm_assets.registry.tracking_store import redacted
from llm_assets.registry.versions import load_version
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

GATE = "gate"
RECORD = "champion.json"


class EnvironmentRun(dg.Config):
    """Run config of an environment: left out, the version in use in the environment before it is considered."""

    version: int | None = None


def build_environments(lineage: Lineage, registry: RegistryConfig) -> list[dg.AssetsDefinition]:
    """One asset per entry of `registry.environments`; each depends on the one before it, the first on the champion."""
    made, before = [], None
    for environment in registry.environments:
        made.append(_build_environment(lineage, registry, environment, before))
        before = environment
    return made


def _build_environment(
    lineage: Lineage, registry: RegistryConfig, environment: EnvironmentConfig, before: EnvironmentConfig | None
) -> dg.AssetsDefinition:
    source_key = lineage.key("environment", before.label) if before else lineage.key("champion")
    own_key = lineage.key("environment", environment.label)
    verdict_of_newest = dg.AssetCheckSpec(
        GATE, asset=own_key, description="On shared rows, what is promoted is not worse than what is in use here."
    )

    @lineage.asset(
        "environment",
        environment.label,
        stage="registry",
        kinds={"mlflow"},
        version="1",
        settings=[environment],
        deps=[source_key],
        check_specs=[verdict_of_newest],
    )
    def in_use(
        context: dg.AssetExecutionContext, config: EnvironmentRun, store: ArtifactStore, tracking: MLflowTracking
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        """The version in use in this environment.

        The version in use in the environment before it is copied here, with its gate's evidence, and takes the alias
        when it is not worse than what is in use here. To go back, materialize this asset with the run config
        `version: 3`: a version number of this environment.
        """
        own = tracking.store()
        origin, target = before.store(own) if before else own, environment.store(own)
        promoted = json.loads((store.open(context.instance, source_key).path / RECORD).read_text())
        source = load_version(promoted["name"], promoted["version"], origin.tracking_uri, origin.separate_registry_uri)
        evidence = source.require_promoted()
        copied = copy_version(source, origin, environment.name, target, context.log.info)
        throne = Throne(
            environment.name, environment.alias, registry, target, evidence.checks, tracking.run_tags(context)
        )
        requested = str(config.version) if config.version is not None else None
        decided = throne.succeed(copied.version, requested, _recorded(context, store, environment.name))
        if decided.promotion is None:
            yield check_event(GATE, decided.verdict)  # nothing is in use, so nothing is materialized to carry it
            raise dg.Failure(
                f"Nothing is in use in {environment.label}. {decided.verdict.summary}", allow_retries=False
            )
        context.log.info(
            f"{environment.name} version {decided.candidate} was {decided.kind}. {decided.verdict.summary}"
        )
        with store.staging() as staged:
            (staged / RECORD).write_text(json.dumps(decided.promotion.as_dict(), indent=1))
            artifact = store.publish(context.asset_key, staged)
        yield materialized(
            artifact,
            {
                "version": int(decided.promotion.version),
                "previous_version": decided.promotion.previous_version or "none",
                "copied_bytes": copied.copied_bytes,
                "copied_from": f"models:/{source.name}/{source.version}",
                "registry": redacted(target.registry_uri),
                "decision": f"version {decided.candidate} {decided.kind}",
                "versions": table(history_rows(read_history(environment.name, target))),
            },
            checks={GATE: decided.verdict},
        )

    return in_use


def _recorded(context: dg.AssetExecutionContext, store: ArtifactStore, name: str) -> str | None:
    try:
        record = json.loads((store.open(context.instance, context.asset_key).path / RECORD).read_text())
    except ArtifactMissing:
        return None
    return record["version"] if record["name"] == name else None
