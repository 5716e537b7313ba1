"""A lineage's models as one version in MLflow, registered only when every check before it passed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, picture, table, unmet_checks
from llm_assets.charts import bar_chart
from llm_assets.evaluation.report import scoreboard_rows
from llm_assets.evaluation.scoreboard import MERGED
from llm_assets.registry.coherence import Part, refuse_mixed
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.contents import VersionSources, stored_bytes
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.promote import point_challenger
from llm_assets.registry.register import register_version, write_record
from llm_assets.registry.round_trip import registry_round_trip
from llm_assets.registry.versions import RegisteredVersion, load_version
from llm_assets.resources.artifact_store import FINGERPRINT_KEY, ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

ROUND_TRIP = "registry_round_trip"
MADE_FROM = ("evaluation", "merged_model", "lora_adapter", "tokenized_dataset", "chat_dataset")
FLOW = ("base_model", "chat_dataset", "tokenized_dataset", "lora_adapter", "merged_model")  # then variants, evaluation


def build_registered_version(
    lineage: Lineage,
    registry: RegistryConfig,
    quantization_names: Sequence[str],
    gate: Sequence[dg.AssetCheckKey],
    *,
    row_format: Mapping[str, Any] | None = None,
    base: str = "",
) -> dg.AssetsDefinition:
    """The `registered_version` asset.

    Args:
        lineage: The model's slice of the graph.
        registry: Name, task, schemas and aliases.
        quantization_names: Variants the lineage makes.
        gate: Checks whose latest verdicts must be passed.
        row_format: The `format` block as JSON, kept in the version for whoever asks from raw rows.
        base: Source of the base model, in words.
    """
    served = registry.served(row_format, base)
    variants = {name: lineage.key("quantized", name) for name in registry.chosen_variants(tuple(quantization_names))}
    fixed = {name: lineage.key(name) for name in MADE_FROM}
    name = registry.registered_name(lineage.model)

    @lineage.asset(
        "registered_version",
        stage="registry",
        kinds={"mlflow"},
        version="2",
        settings={
            "name": name,
            "variants": list(variants),
            "challenger": registry.challenger_alias,
            "served": asdict(served),
        },
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
        same artifacts again returns the version there is. Refused while any check of the lineage is not passed, and
        when a part was made from something else than the other parts, such as an adapter of an earlier dataset.
        """
        if unmet := unmet_checks(context.instance, gate):
            raise dg.Failure(
                f"Not registered: {len(unmet)} checks have not passed: {', '.join(unmet)}. Fix and materialize those "
                "assets, then this one.",
                allow_retries=False,
            )
        order = [*map(lineage.key, FLOW), *variants.values(), lineage.key("evaluation")]
        refuse_mixed({"/".join(key.path[1:]): part for key in order if (part := _part(context, key))})
        opened = {asset: store.open(context.instance, key).path for asset, key in fixed.items()}
        sources = VersionSources(
            model=lineage.model,
            merged=opened["merged_model"],
            variants={variant: store.open(context.instance, key).path for variant, key in variants.items()},
            adapter=opened["lora_adapter"],
            tokenized=opened["tokenized_dataset"],
            evaluation=opened["evaluation"],
            chat=opened["chat_dataset"],
            served=served,
        )
        mlflow = tracking.store()
        registered = register_version(name, sources, mlflow, tracking.run_tags(context), context.log.info)
        loaded = load_version(name, registered.version, mlflow.tracking_uri, mlflow.separate_registry_uri)
        verdict = registry_round_trip(sources, loaded)
        if verdict.passed and registry.challenger_alias:
            point_challenger(name, registered.version, registry.challenger_alias, registry.alias, mlflow)
        with store.staging() as staged:
            write_record(staged, registered, loaded.metadata)
            artifact = store.publish(context.asset_key, staged)
        stored = stored_bytes(loaded.directory, loaded.metadata)
        return materialized(
            artifact,
            {
                "version": int(registered.version),
                "stored_bytes": sum(stored.values()),
                "copied_bytes": registered.copied_bytes,
                "created": registered.created,
                **_page(loaded, stored),
                "mlflow_uri": registered.uri,
                "mlflow": tracking.link(name, registered.version),
            },
            checks={ROUND_TRIP: verdict},
        )

    return registered_version


def _part(context: dg.AssetExecutionContext, key: dg.AssetKey) -> Part | None:
    """An asset's current content and what it was made from, as its last materialization recorded both."""
    event, provenance = context.instance.get_latest_materialization_event(key), context.get_asset_provenance(key)
    if event is None or event.asset_materialization is None:
        return None
    used = provenance.input_data_versions if provenance else {}
    made_from = {"/".join(source.path[1:]): version.value for source, version in used.items()}
    return Part(str(event.asset_materialization.metadata[FINGERPRINT_KEY].value), made_from)


def _page(loaded: RegisteredVersion, stored: Mapping[str, int]) -> dict[str, Any]:
    """What a person reads about the version: its card, scores, settings, prompts and where its bytes are."""
    metadata = loaded.metadata
    scoreboard, dtypes = metadata["scoreboard"], metadata["dtypes"]
    primary = scoreboard["primary"]
    lines = [{"candidate": row["candidate"], primary: row[primary], **row} for row in scoreboard_rows(scoreboard)]
    served = [
        {
            "variant": variant,
            "engine": metadata["variants"].get(variant, {}).get("engine", "vllm"),
            "megabytes": stored[variant] / 1e6,
            "serving_dtype": dtypes["serving"][variant],
            "kv_cache_dtype": dtypes["kv_cache"][variant],
        }
        for variant in dtypes["serving"]
    ]
    sizes = bar_chart("What the version holds", "MB", {part: size / 1e6 for part, size in stored.items()})
    score = metadata["scores"].get(MERGED, {}).get("value")
    return {
        **({primary: float(score)} if score is not None else {}),
        "model_card": dg.MetadataValue.md(write_model_card(loaded.name, metadata)),
        "scoreboard": table(lines),
        "variants": table(served),
        "generation": table([{"setting": name, "value": str(value)} for name, value in loaded.generation.items()]),
        **({"prompts": table(metadata["prompts"])} if metadata["prompts"] else {}),
        "size_by_part": picture(sizes, "megabytes of each part"),
    }
