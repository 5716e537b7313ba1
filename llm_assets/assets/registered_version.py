"""A lineage's models as one version in MLflow, registered only when every check before it passed."""

from collections.abc import Sequence

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, table, unmet_checks
from llm_assets.evaluation.report import scoreboard_rows
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.promote import point_challenger
from llm_assets.registry.register import register_version, write_record
from llm_assets.registry.round_trip import registry_round_trip
from llm_assets.registry.versions import load_version
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

ROUND_TRIP = "registry_round_trip"


def build_registered_version(
    lineage: Lineage, registry: RegistryConfig, quantization_names: Sequence[str], gate: Sequence[dg.AssetCheckKey]
) -> dg.AssetsDefinition:
    """The `registered_version` asset; `gate` names the checks whose latest verdicts must be passed."""
    variants = {name: lineage.key("quantized", name) for name in registry.chosen_variants(tuple(quantization_names))}
    fixed = {name: lineage.key(name) for name in ("evaluation", "merged_model", "lora_adapter", "tokenized_dataset")}
    name = registry.registered_name(lineage.model)

    @lineage.asset(
        "registered_version",
        stage="registry",
        kinds={"mlflow"},
        version="1",
        settings={"name": name, "variants": list(variants), "challenger": registry.challenger_alias},
        deps=[*fixed.values(), *variants.values()],
        check_specs=lineage.blocking_checks(
            "registered_version",
            names={ROUND_TRIP: "Every byte, the template and the generation defaults come back as registered."},
        ),
    )
    def registered_version(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """An MLflow model version with everything inference needs.

        It holds the merged weights, every quantized variant, tokenizer and template, the generation settings its
        scoreboard was measured with, token lengths, training record, fingerprints and a model card. Registering the
        same artifacts again returns the version there is. Refused while any check of the lineage is not passed.
        """
        if unmet := unmet_checks(context.instance, gate):
            raise dg.Failure(
                f"Not registered: {len(unmet)} checks have not passed: {', '.join(unmet)}. Fix and materialize those "
                "assets, then this one.",
                allow_retries=False,
            )
        opened = {asset: store.open(context.instance, key).path for asset, key in fixed.items()}
        sources = VersionSources(
            model=lineage.model,
            merged=opened["merged_model"],
            variants={variant: store.open(context.instance, key).path for variant, key in variants.items()},
            adapter=opened["lora_adapter"],
            tokenized=opened["tokenized_dataset"],
            evaluation=opened["evaluation"],
        )
        mlflow = tracking.store()
        registered = register_version(name, sources, mlflow, tracking.run_tags(context), context.log.info)
        loaded = load_version(name, registered.version, mlflow.tracking_uri)
        verdict = registry_round_trip(sources, loaded)
        if verdict.passed and registry.challenger_alias:
            point_challenger(name, registered.version, registry.challenger_alias, registry.alias, mlflow)
        with store.staging() as staged:
            write_record(staged, registered, loaded.metadata["variants"])
            artifact = store.publish(context.asset_key, staged)
        scoreboard = loaded.metadata["scoreboard"]
        primary = scoreboard["primary"]
        lines = [{"candidate": row["candidate"], primary: row[primary], **row} for row in scoreboard_rows(scoreboard)]
        return materialized(
            artifact,
            {
                "version": int(registered.version),
                "copied_bytes": registered.copied_bytes,
                "created": registered.created,
                "mlflow_uri": registered.uri,
                "mlflow": tracking.link(name, registered.version),
                "model_card": dg.MetadataValue.md(write_model_card(name, loaded.metadata)),
                "scoreboard": table(lines),
            },
            checks={ROUND_TRIP: verdict},
        )

    return registered_version
