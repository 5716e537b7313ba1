"""Base and adapter as one model: what every quantized variant, the registry and the engine start from."""

from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, picture, table
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training.equivalence import check_merge_equivalence
from llm_assets.training.merge_choice import merge_by_policy
from llm_assets.training.merge_config import MergeConfig
from llm_assets.training.merge_report import change_picture, largest_changes, policy_decision
from llm_assets.training.merged_checks import check_tokenizer_consistency, check_weights_finite

MERGE_EQUIVALENCE = "merge_equivalence"
WEIGHTS_FINITE = "weights_finite"
TOKENIZER_CONSISTENCY = "tokenizer_consistency"
VERSION = "2"


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
                MERGE_EQUIVALENCE: "Reloaded, it predicts and answers held-out rows like the base with the adapter.",
                WEIGHTS_FINITE: "No weight is NaN or infinite.",
                TOKENIZER_CONSISTENCY: "Vocabulary, chat template, stop tokens and tied weights are those of training.",
            },
        ),
        pool="gpu",
    )
    def merged_model(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """A Hugging Face model directory with the adapter folded into the weights, a block of rows at a time.

        `merge.json` says into which weights, what decided it, and how large the adapter is beside what rounding loses.
        """
        adapter, base, dataset = (
            store.open(context.instance, lineage.key(name))
            for name in ("lora_adapter", "base_model", "tokenized_dataset")
        )
        with store.staging() as staged:
            record = merge_by_policy(base.path, adapter.path, dataset.path, staged, merge, context.log.info)
            artifact = store.publish(context.asset_key, staged)
        equivalence = check_merge_equivalence(
            base.path, adapter.path, artifact.path, dataset.path, merge, policy=record["policy"]
        )
        return materialized(
            artifact,
            merge_metadata(record),
            checks={
                MERGE_EQUIVALENCE: equivalence,
                WEIGHTS_FINITE: check_weights_finite(artifact.path),
                TOKENIZER_CONSISTENCY: check_tokenizer_consistency(base.path, artifact.path, dataset.path),
            },
        )

    return merged_model


def merge_metadata(record: dict[str, Any]) -> dict[str, Any]:
    """The policy and what decided it, how much of the adapter is kept, and where it changed most."""
    numbers = (
        "merged_modules", "replaced_tensors", "trained_tokens", "mean_delta_share", "mean_rounding_share",
        "mean_quantization_share",
    )  # fmt: skip
    losses = {f"held_out_loss_{policy}": float(loss) for policy, loss in record["held_out_loss"].items()}
    png = change_picture(record)
    return {
        **{name: record[name] for name in numbers},
        **losses,
        "policy": record["policy"],
        "policy_decision": policy_decision(record),
        "stored_dtype": record["dtype"],
        "untied_head": record["untied_head"],
        "largest_changes": table(largest_changes(record)),
        **({"change_by_layer": picture(png, "Relative change of every adapted weight by layer")} if png else {}),
    }
