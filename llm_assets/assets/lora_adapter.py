"""The adapter, trained with the best parameters of the study on the whole budget.

Checkpoints live in the store's workspace: a killed run continues after its last one, to the same bytes, and draws on in
the same MLflow run.
"""

from typing import Any

import dagster as dg

from llm_assets import charts
from llm_assets.assets.conventions import Lineage, materialized, picture, plain, table
from llm_assets.resources.artifact_store import ArtifactStore, digest
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.training import elastic
from llm_assets.training.curves import CurvesTarget, recorded
from llm_assets.training.isolation import check_isolation
from llm_assets.training.loss_check import check_loss
from llm_assets.training.memory_plan import PARTS
from llm_assets.training.study import best_parameters
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport

LOSS = "loss"
PACK_ISOLATION = "pack_isolation"
VERSION = "2"


def build_lora_adapter(lineage: Lineage, training: TrainingConfig) -> dg.AssetsDefinition:
    """The adapter asset of a lineage."""

    @lineage.asset(
        "lora_adapter",
        stage="training",
        kinds={"pytorch", "huggingface"},
        version=VERSION,
        settings=[training.model_dump(mode="json", exclude={"report_to"})],
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
    def lora_adapter(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """Adapter weights trained on packed conversations, with a loss on answers only.

        Holds the loss of every step, the tokenizer and chat template of training, and which modules were in 4 bit. With
        method full it holds the whole trained model instead, in float32.
        """
        study, dataset, base = (
            store.open(context.instance, lineage.key(name)) for name in ("hpo_study", "tokenized_dataset", "base_model")
        )
        best = best_parameters(study.path)
        config = training.with_parameters(best)
        settings = config.model_dump(mode="json", exclude={"report_to"})
        inputs = {"inputs": [dataset.fingerprint, base.fingerprint], "settings": settings, "version": VERSION}
        target = curves_target(context, tracking, lineage) if "mlflow" in config.report_to else None
        with (
            store.workspace(context.asset_key, digest(inputs)) as work,
            store.staging() as staged,
            recorded(target, work, plain(config), context.log.info) as curves,
        ):
            report = elastic.train(
                base.path, dataset.path, staged, work, config, log=context.log.info, report=curves.report
            )
            artifact = store.publish(context.asset_key, staged)
        metadata = {
            **training_metadata(report),
            **({"mlflow_run": curves.run_id} if curves.run_id else {}),
            "best_parameters": table([{"parameter": k, "value": best[k]} for k in best]),
        }
        checks = {LOSS: check_loss(report, config), PACK_ISOLATION: check_isolation(report.isolation)}
        return materialized(artifact, metadata, checks=checks)

    return lora_adapter


def curves_target(context: dg.AssetExecutionContext, tracking: MLflowTracking, lineage: Lineage) -> CurvesTarget:
    """A run of the lineage's experiment, named for the asset and leading back to the Dagster run."""
    store = tracking.store()
    experiment = store.experiment_id(store.client(), lineage.model)
    name = context.asset_key.to_user_string()
    return CurvesTarget(store.tracking_uri, experiment, name, tracking.run_tags(context))


def training_metadata(report: TrainingReport) -> dict[str, Any]:
    """Numbers, loss curve and tables of a training run for the asset page."""
    training = [(row["step"], row["loss"]) for row in report.history]
    evaluation = [(row["step"], row["evaluation_loss"]) for row in report.history if row["evaluation_loss"] is not None]
    if report.base_evaluation_loss is not None:
        evaluation.insert(0, (0, report.base_evaluation_loss))
    lines = {"training": training, **({"evaluation": evaluation} if evaluation else {})}
    every = max(1, len(report.history) // 20)
    measured = {
        "evaluation_loss": report.evaluation_loss,
        "evaluation_loss_half_width": report.evaluation_half_width,
        "base_evaluation_loss": report.base_evaluation_loss,
        "model_flops_share": report.model_flops_share,
    }
    plan = report.plan
    return {
        **{name: float(value) for name, value in measured.items() if value is not None},
        "final_loss": float(report.final_loss),
        "steps": report.steps,
        "skipped_steps": report.skipped_steps,
        "tokens": report.tokens,
        "supervised_tokens": report.supervised_tokens,
        "tokens_per_second": float(report.tokens_per_second),
        "trainable_parameters": report.trainable_parameters,
        "planned_memory_bytes": plan.tensor_bytes,
        "measured_memory_bytes": report.measured_memory_bytes,
        "memory_plan": table([{"part": part, "bytes": getattr(plan, part)} for part in PARTS]),
        "loss_curve": picture(
            charts.line_chart("Loss", "step", "nats per token", lines), "Training and evaluation loss"
        ),
        "loss_table": table(report.history[every - 1 :: every]),
    }
