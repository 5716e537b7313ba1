"""The alias of the version in use, moved only by the gate."""

import json
from collections.abc import Iterator, Sequence

import dagster as dg

from llm_assets.assets.conventions import Lineage, check_event, materialized, unmet_checks
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.gate import gate as decide
from llm_assets.registry.gate import read_exam
from llm_assets.registry.promote import current, promote
from llm_assets.registry.versions import load_version
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

GATE = "gate"


def build_champion(lineage: Lineage, registry: RegistryConfig, gate: Sequence[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    """The `champion` asset; `gate` names the checks whose latest verdicts must be passed."""
    registered_key, evaluation_key = lineage.key("registered_version"), lineage.key("evaluation")

    @lineage.asset(
        "champion",
        stage="registry",
        kinds={"mlflow"},
        version="1",
        settings=[registry],
        deps=[registered_key, evaluation_key],
        check_specs=lineage.blocking_checks(
            "champion", names={GATE: "Floors hold, and on shared rows it is not worse than the version in use."}
        ),
    )
    def champion(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        """The version in use: the alias inference reads.

        The registered version is compared with the one in use on the held-out rows both answered. It takes the alias
        when every check before it passed and it is not worse; the version it replaces is kept on record.
        """
        if unmet := unmet_checks(context.instance, gate):
            raise dg.Failure(
                f"Not promoted: {len(unmet)} checks have not passed: {', '.join(unmet)}. Fix and materialize those "
                "assets, then this one.",
                allow_retries=False,
            )
        record = json.loads((store.open(context.instance, registered_key).path / "registered.json").read_text())
        mlflow = tracking.store()
        name, version = record["name"], record["version"]
        holder = current(name, registry.alias, mlflow)
        candidate = load_version(name, version, mlflow.tracking_uri)
        in_use = load_version(name, holder, mlflow.tracking_uri) if holder else None
        verdict = decide(read_exam(candidate), read_exam(in_use) if in_use else None, registry)
        if not verdict.passed:
            yield check_event(GATE, verdict)
            raise dg.Failure(
                f"{name} version {version} was not promoted. {verdict.summary} The alias {registry.alias} stays on "
                f"version {holder or 'none'}.",
                allow_retries=False,
            )
        promotion = promote(name, version, registry.alias, mlflow)
        with store.staging() as staged:
            (staged / "champion.json").write_text(json.dumps(promotion.as_dict(), indent=1))
            artifact = store.publish(context.asset_key, staged)
        yield materialized(
            artifact,
            {
                "version": int(version),
                "previous_version": promotion.previous_version or "none",
                "mlflow_uri": f"models:/{name}@{registry.alias}",
                "mlflow": tracking.link(name, version),
            },
            checks={GATE: verdict},
        )

    return champion
