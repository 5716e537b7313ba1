"""The study that finds training parameters: its best ones are what the adapter is trained with.

Trials and their checkpoints live in the store's workspace, so a killed study continues at the step it had reached.
"""

import dagster as dg

from llm_assets import charts
from llm_assets.assets.conventions import Lineage, materialized, picture, plain, table
from llm_assets.resources.artifact_store import ArtifactStore, digest
from llm_assets.training.study import (
    TrialRecord,
    best_trial,
    check_beats_defaults,
    check_completed_trial,
    run_study,
)
from llm_assets.training.study_config import StudyConfig
from llm_assets.training.training_config import TrainingConfig

HAS_COMPLETED_TRIAL = "has_completed_trial"
BEATS_DEFAULTS = "beats_defaults"
VERSION = "1"


def build_hpo_study(lineage: Lineage, study: StudyConfig, training: TrainingConfig) -> dg.AssetsDefinition:
    """The hyperparameter study asset of a lineage."""

    @lineage.asset(
        "hpo_study",
        stage="training",
        kinds={"optuna", "pytorch"},
        version=VERSION,
        settings=[study, training],
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
    def hpo_study(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """Trials of the training parameters on a share of the full run, each judged by its loss on validation rows.

        The first trial has the parameters written in the YAML; weak trials are cut short.
        """
        dataset = store.open(context.instance, lineage.key("tokenized_dataset"))
        base = store.open(context.instance, lineage.key("base_model"))
        settings = plain({"study": study, "training": training})
        inputs = {"inputs": [dataset.fingerprint, base.fingerprint], "settings": settings, "version": VERSION}
        with store.workspace(context.asset_key, digest(inputs)) as work, store.staging() as staged:
            trials = run_study(base.path, dataset.path, staged, work, study, training=training, log=context.log.info)
            artifact = store.publish(context.asset_key, staged)
        return materialized(
            artifact,
            study_metadata(trials),
            checks={HAS_COMPLETED_TRIAL: check_completed_trial(trials), BEATS_DEFAULTS: check_beats_defaults(trials)},
        )

    return hpo_study


def study_metadata(trials: list[TrialRecord]) -> dict[str, dg.MetadataValue | float | int]:
    """Numbers, table and picture of a study for its asset page."""
    best = best_trial(trials)
    values = [(float(trial.number + 1), trial.value) for trial in trials if trial.value is not None]
    so_far = [(number, min(value for _, value in values[: place + 1])) for place, (number, _) in enumerate(values)]
    history = charts.line_chart(
        "Loss of completed trials", "trial", "evaluation loss", {"trial": values, "best so far": so_far}
    )
    rows = [
        {"trial": t.number, "state": t.state, "value": t.value, **t.parameters, "steps": t.steps, "reason": t.reason}
        for t in trials[:50]
    ]
    numbers = {"best_value": float(best.value), "best_trial": best.number} if best and best.value is not None else {}
    return {
        **numbers,
        "trials": len(trials),
        "pruned_trials": sum(trial.state == "pruned" for trial in trials),
        "best_parameters": table([{"parameter": k, "value": v} for k, v in best.parameters.items()] if best else []),
        "history": picture(history, "Loss of completed trials"),
        "all_trials": table(rows),
    }
