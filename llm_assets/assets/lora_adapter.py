"""The adapter, trained with the best parameters of the study on the whole budget.

Checkpoints live in the store's workspace: a killed run continues after its last one, to the same bytes.
"""

import dagster as dg

from llm_assets import charts
from llm_assets.assets.conventions import Lineage, materialized, picture, plain, table
from llm_assets.resources.artifact_store import ArtifactStore, digest
from llm_assets.training.isolation import check_isolation
from llm_assets.training.loss_check import check_loss
from llm_assets.training.study import best_parameters
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport

LOSS = "loss"
PACK_ISOLATION = "pack_isolation"
VERSION = "1"


def build_lora_adapter(lineage: Lineage, training: TrainingConfig) -> dg.AssetsDefinition:
    """The adapter asset of a lineage."""

    @lineage.asset(
        "lora_adapter",
        stage="training",
        kinds={"pytorch", "huggingface"},
        version=VERSION,
        settings=[training],
        deps=[lineage.key(name) for name in ("hpo_study", "tokenized_dataset", "base_model")],
        check_specs=lineage.blocking_checks(
            "lora_adapter",
            names={
                LOSS: "Losses are finite, training loss fell, evaluation loss is below the base's and the bound.",
                PACK_ISOLATION: "On this model, documents packed together cannot see each other.",
            },
        ),
        pool="gpu",
    )
    def lora_adapter(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """Adapter weights trained on packed conversations, with a loss on answers only.

        Holds the loss of every step, the tokenizer and chat template of training, and which modules were in 4 bit.
        """
        study, dataset, base = (
            store.open(context.instance, lineage.key(name)) for name in ("hpo_study", "tokenized_dataset", "base_model")
        )
        best = best_parameters(study.path)
        config = training.with_parameters(best)
        inputs = {"inputs": [dataset.fingerprint, base.fingerprint], "settings": plain(config), "version": VERSION}
        with store.workspace(context.asset_key, digest(inputs)) as work, store.staging() as staged:
            report = train_adapter(base.path, dataset.path, staged, work, config, log=context.log.info)
            artifact = store.publish(context.asset_key, staged)
        return materialized(
            artifact,
            {**training_metadata(report), "best_parameters": table([{"parameter": k, "value": best[k]} for k in best])},
            checks={LOSS: check_loss(report, config), PACK_ISOLATION: check_isolation(report.isolation)},
        )

    return lora_adapter


def training_metadata(report: TrainingReport) -> dict[str, dg.MetadataValue | float | int]:
    """Numbers, loss curve and its table for the asset page."""
    training = [(row["step"], row["loss"]) for row in report.history]
    evaluation = [(row["step"], row["evaluation_loss"]) for row in report.history if row["evaluation_loss"] is not None]
    evaluation.insert(0, (0, report.base_evaluation_loss))
    curve = charts.line_chart("Loss", "step", "nats per token", {"training": training, "evaluation": evaluation})
    every = max(1, len(report.history) // 20)
    return {
        "evaluation_loss": float(report.evaluation_loss),
        "base_evaluation_loss": float(report.base_evaluation_loss),
        "final_loss": float(report.final_loss),
        "steps": report.steps,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "tokens_per_second": float(report.tokens_per_second),
        "trainable_parameters": report.trainable_parameters,
        "loss_curve": picture(curve, "Training and evaluation loss"),
        "loss_table": table(report.history[every - 1 :: every]),
    }
