"""The model a lineage starts from, as one complete directory."""

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, table
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training.base_checks import describe, supported_architecture, trained_special_tokens
from llm_assets.training.base_model import BaseModelConfig, prepare_base_model
from llm_assets.training.training_config import TrainingConfig

TRAINED_SPECIAL_TOKENS = "trained_special_tokens"
SUPPORTED_ARCHITECTURE = "supported_architecture"


def build_base_model(
    lineage: Lineage, config: BaseModelConfig, training: TrainingConfig | None = None
) -> dg.AssetsDefinition:
    """The asset `<model>/base_model`; rows that `training` trains need not have been trained before."""
    checks = {
        TRAINED_SPECIAL_TOKENS: "The base was trained on the special tokens its chat template writes.",
        SUPPORTED_ARCHITECTURE: "Training, quantization and engine all know the architecture.",
    }

    @lineage.asset(
        "base_model",
        stage="training",
        kinds={"huggingface", "pytorch"},
        version="1",
        settings=[config, *_trained_rows(training)],
        check_specs=lineage.blocking_checks("base_model", names=checks),
    )
    def base_model(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """The model that is fine-tuned: a pinned Hub snapshot, a copy of a local directory, or one built on the spot.

        Later steps read this directory alone: weights, tokenizer, chat template and stop tokens.
        """
        with store.staging() as staged:
            prepare_base_model(config, staged, context.log.info)
            artifact = store.publish(context.asset_key, staged)
        description = describe(artifact.path)
        return materialized(
            artifact,
            {
                "source": config.source,
                "architecture": description.architecture,
                "parameters": description.parameters,
                "vocabulary_size": description.vocabulary_size,
                "context_tokens": description.context_tokens,
                "template_sha256": description.template_sha256,
                "special_tokens": table(description.special_tokens),
            },
            checks={
                TRAINED_SPECIAL_TOKENS: trained_special_tokens(artifact.path, training),
                SUPPORTED_ARCHITECTURE: supported_architecture(artifact.path),
            },
        )

    return base_model


def _trained_rows(training: TrainingConfig | None) -> list[str]:
    """What of the training block changes this asset's verdict, so that it is given anew."""
    if training is None:
        return []
    return [*training.trainable_tokens, *training.modules_to_save, *(["full"] if training.method == "full" else [])]
