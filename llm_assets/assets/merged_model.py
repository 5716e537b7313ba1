"""Base and adapter as one model: what every quantized variant, the registry and the engine start from."""

from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, table
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training.equivalence import (
    check_merge_equivalence,
    check_tokenizer_consistency,
    check_weights_finite,
)
from llm_assets.training.merge import MergeConfig, merge_adapter

MERGE_EQUIVALENCE = "merge_equivalence"
WEIGHTS_FINITE = "weights_finite"
TOKENIZER_CONSISTENCY = "tokenizer_consistency"
VERSION = "1"


def build_merged_model(lineage: Lineage, merge: MergeConfig) -> dg.AssetsDefinition:
    """The merged model asset of a lineage."""

    @lineage.asset(
        "merged_model",
        stage="training",
        kinds={"huggingface", "pytorch"},
        version=VERSION,
        settings=[merge],
        deps=[lineage.key(name) for name in ("lora_adapter", "base_model", "tokenized_dataset")],
        check_specs=lineage.blocking_checks(
            "merged_model",
            names={
                MERGE_EQUIVALENCE: "On held-out rows it predicts like the base as trained with the adapter.",
                WEIGHTS_FINITE: "No weight is NaN or infinite.",
                TOKENIZER_CONSISTENCY: "Vocabulary, chat template, stop tokens and tied weights are those of training.",
            },
        ),
        pool="gpu",
    )
    def merged_model(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """A Hugging Face model directory with the adapter folded into the weights, one tensor at a time.

        `merge.json` says into which weights, and how large the adapter is beside what rounding loses.
        """
        adapter, base, dataset = (
            store.open(context.instance, lineage.key(name))
            for name in ("lora_adapter", "base_model", "tokenized_dataset")
        )
        with store.staging() as staged:
            record = merge_adapter(base.path, adapter.path, staged, merge, context.log.info)
            artifact = store.publish(context.asset_key, staged)
        return materialized(
            artifact,
            merge_metadata(record),
            checks={
                MERGE_EQUIVALENCE: check_merge_equivalence(base.path, adapter.path, artifact.path, dataset.path, merge),
                WEIGHTS_FINITE: check_weights_finite(artifact.path),
                TOKENIZER_CONSISTENCY: check_tokenizer_consistency(base.path, artifact.path, dataset.path),
            },
        )

    return merged_model


def merge_metadata(record: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a merge and its modules of largest change for the asset page."""
    numbers = ("merged_modules", "mean_delta_share", "mean_rounding_share", "mean_quantization_share")
    largest = sorted(record["modules"], key=lambda module: -module["delta_share"])[:10]
    return {
        **{name: record[name] for name in numbers},
        "policy": record["policy"],
        "stored_dtype": record["dtype"],
        "largest_changes": table(largest),
    }
