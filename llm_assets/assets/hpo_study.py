"""The study that finds training parameters: its best ones are what the adapter is trained with.

Trials and their checkpoints live in the store's workspace, so a killed study continues at the step it had reached.
"""

import time

import dagster as dg

from llm_assets import charts
from llm_assets.assets.conventions import Lineage, materialized, picture, table
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore, digest
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.training.study import run_study, study_inputs
from llm_assets.training.study_config import StudyConfig
from llm_assets.training.study_importance import parameter_importance
from llm_assets.training.study_records import StudyReport, check_beats_defaults, check_completed_trial
from llm_assets.training.study_runs import log_study
from llm_assets.training.training_config import TrainingConfig

HAS_COMPLETED_TRIAL = "has_completed_trial"
BEATS_DEFAULTS = "beats_defaults"
VERSION = "2"


def build_hpo_study(lineage: Lineage, study: StudyConfig, training: TrainingConfig) -> dg.AssetsDefinition:
    """The hyperparameter study asset of a lineage."""

    @lineage.asset(
        "hpo_study",
        stage="training",
        kinds={"optuna", "pytorch"},
        version=VERSION,
        settings=[study.model_dump(mode="json", exclude={"storage_url", "log_to_mlflow"}), training],
        deps=[lineage.key("tokenized_dataset"), lineage.key("base_model")],
        check_specs=lineage.blocking_checks(
            "hpo_study",
            names={
                HAS_COMPLETED_TRIAL: "At least one trial ran to its end.",
                BEATS_DEFAULTS: "A trial has a lower loss than the YAML's own parameters; warns only.",
            },
        ),
        pool="gpu",
    )
    def hpo_study(
        context: dg.AssetExecutionContext, store: ArtifactStore, tracking: MLflowTracking
    ) -> dg.MaterializeResult:
        """Trials of the training parameters on a share of the full run, each judged by its loss on validation rows.

        The first trial has the parameters written in the YAML; weak trials are cut short. Where data or search space
        have changed, the best parameters of the study before are tried as well.
        """
        began = time.monotonic()
        dataset = store.open(context.instance, lineage.key("tokenized_dataset"))
        base = store.open(context.instance, lineage.key("base_model"))
        inputs = digest({"inputs": study_inputs(base.path, dataset.path, study, training), "version": VERSION})
        try:
            previous = store.open(context.instance, context.asset_key).path
        except ArtifactMissing:
            previous = None
        with store.workspace(context.asset_key, inputs) as work, store.staging() as staged:
            report = run_study(
                base.path, dataset.path, staged, work, study,
                training=training, log=context.log.info, inputs=inputs, previous=previous,
            )  # fmt: skip
            artifact = store.publish(context.asset_key, staged)
        metadata = {**study_metadata(report), "study_seconds": time.monotonic() - began}
        if study.log_to_mlflow and not report.reused:
            metadata["mlflow"] = log_study(tracking.store(), lineage.model, report, tracking.run_tags(context))
        return materialized(
            artifact,
            metadata,
            checks={
                HAS_COMPLETED_TRIAL: check_completed_trial(report.trials),
                BEATS_DEFAULTS: check_beats_defaults(report.trials),
            },
        )

    return hpo_study


def study_metadata(report: StudyReport) -> dict[str, dg.MetadataValue | float | int]:
    """Numbers, tables and pictures of a study for its asset page."""
    best, count = report.best, len(report.trials)
    numbers = {"best_value": float(best.value), "best_trial": best.number} if best and best.value is not None else {}
    rows = [
        {"trial": t.number, "state": t.state, "value": t.value, **t.parameters, "steps": t.steps, "tokens": t.tokens,
         "reason": t.reason}
        for t in report.trials[:50]
    ]  # fmt: skip
    importance = parameter_importance(report.trials)
    return {
        **numbers,
        "trials": count,
        **{f"{state}_trials": report.count(state) for state in ("complete", "pruned", "failed")},
        "pruned_share": report.count("pruned") / count,
        "tokens": report.tokens,
        "tokens_without_pruning": report.tokens_without_pruning,
        "tokens_saved_share": 1 - report.tokens / max(1, report.tokens_without_pruning),
        "trial_seconds": float(report.seconds),
        "reused": report.reused,
        "best_parameters": table([{"parameter": k, "value": v} for k, v in best.parameters.items()] if best else []),
        "history": picture(_history(report), "Loss of completed trials"),
        "slices": picture(_slices(report), "Loss of completed trials over each parameter"),
        **({"importance": picture(_importance(importance), "Importance of each parameter")} if importance else {}),
        "all_trials": table(rows),
    }


def _history(report: StudyReport) -> bytes:
    values = [(float(trial.number + 1), trial.value) for trial in report.trials if trial.value is not None]
    so_far = [(number, min(value for _, value in values[: place + 1])) for place, (number, _) in enumerate(values)]
    lines = {"trial": values, "best so far": so_far}
    return charts.line_chart("Loss of completed trials", "trial", "evaluation loss", lines)


def _slices(report: StudyReport) -> bytes:
    names = sorted({name for trial in report.trials for name in trial.parameters})
    panels = {
        name: [(t.parameters[name], t.value) for t in report.trials if t.value is not None and name in t.parameters]
        for name in names
    }
    return charts.scatter_panels("Loss over each parameter", "evaluation loss", panels)


def _importance(importance: dict[str, float]) -> bytes:
    return charts.bar_chart("Importance of each parameter", "share of the loss's variation", importance)
