"""The alias of the version in use, moved only by the gate or by a person who goes back."""

import json
from collections.abc import Iterator, Sequence

import dagster as dg

from llm_assets.assets.conventions import Lineage, check_event, materialized, picture, table, unmet_checks
from llm_assets.charts import line_chart
from llm_assets.core import CheckResult
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.history import PastVersion, history_rows, read_history
from llm_assets.registry.prompts import write_prompt_record
from llm_assets.registry.succession import Throne
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

GATE = "gate"
RECORD = "champion.json"


class ChampionRun(dg.Config):
    """Run config of the champion: left out, the newest registered version is considered."""

    version: int | None = None


def build_champion(lineage: Lineage, registry: RegistryConfig, gate: Sequence[dg.AssetCheckKey]) -> dg.AssetsDefinition:
    """The `champion` asset; `gate` names the checks whose latest verdicts must be passed."""
    registered_key, evaluation_key = lineage.key("registered_version"), lineage.key("evaluation")
    verdict_of_newest = dg.AssetCheckSpec(
        GATE,
        asset=lineage.key("champion"),
        blocking=False,  # a refused challenger leaves the version in use as it was: nothing below it has to stop
        description="Floors hold, and on shared rows the newest version is not worse than the one in use.",
    )

    @lineage.asset(
        "champion",
        stage="registry",
        kinds={"mlflow"},
        version="2",
        settings=[registry],
        deps=[registered_key, evaluation_key],
        check_specs=[verdict_of_newest],
    )
    def champion(
        context: dg.AssetExecutionContext, config: ChampionRun, store: ArtifactStore, tracking: MLflowTracking
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        """The version in use: the alias inference reads.

        The newest version is compared with the one in use on the held-out rows both answered. It takes the alias when
        every check before it passed and it is not worse; otherwise `gate` is red and the version in use stays. To go
        back, materialize this asset with the run config `version: 3`, or move the alias in MLflow and materialize it.
        """
        record = json.loads((store.open(context.instance, registered_key).path / "registered.json").read_text())
        name, mlflow = record["name"], tracking.store()
        checks = [key.to_user_string() for key in gate]
        throne = Throne(name, registry.alias, registry, mlflow, checks, tracking.run_tags(context))
        requested = str(config.version) if config.version is not None else None
        recorded = _recorded(context, store, name)
        unmet, asked = unmet_checks(context.instance, gate), throne.asked(requested, recorded)
        if unmet and (asked is None or not throne.was_promoted(asked)):
            if recorded and asked and not requested:
                throne.put_back(recorded)  # the alias was moved in MLflow to a version that no gate has passed
            reason = (
                f"Not promoted: {len(unmet)} checks have not passed: {', '.join(unmet)}. Fix and materialize those "
                "assets, then this one. The version in use stays in use."
            )
            yield check_event(GATE, CheckResult(False, reason))
            raise dg.Failure(reason, allow_retries=False)
        decided = throne.succeed(record["version"], requested, recorded)
        if decided.promotion is None:
            yield check_event(GATE, decided.verdict)  # nothing is in use, so nothing is materialized to carry it
            raise dg.Failure(
                f"{name} version {decided.candidate} was not promoted, and there is no version in use. "
                f"{decided.verdict.summary}",
                allow_retries=False,
            )
        context.log.info(f"{name} version {decided.candidate} was {decided.kind}. {decided.verdict.summary}")
        with store.staging() as staged:
            (staged / RECORD).write_text(json.dumps(decided.promotion.as_dict(), indent=1))
            write_prompt_record(staged, throne.prompts(decided.promotion.version))  # for who asks it
            artifact = store.publish(context.asset_key, staged)
        version, history = decided.promotion.version, read_history(name, mlflow)
        yield materialized(
            artifact,
            {
                "version": int(version),
                "previous_version": decided.promotion.previous_version or "none",
                "decision": f"version {decided.candidate} {decided.kind}",
                **{key: value for key, value in decided.verdict.numbers.items() if isinstance(value, (int, float))},
                "mlflow_uri": f"models:/{name}@{registry.alias}",
                "mlflow": tracking.link(name, version),
                "versions": table(history_rows(history)),
                **_progress(history),
            },
            checks={GATE: decided.verdict},
        )

    return champion


def _recorded(context: dg.AssetExecutionContext, store: ArtifactStore, name: str) -> str | None:
    """The version in use as this asset left it last, if it was of this name."""
    try:
        record = json.loads((store.open(context.instance, context.asset_key).path / RECORD).read_text())
    except ArtifactMissing:
        return None
    return record["version"] if record["name"] == name else None


def _progress(history: Sequence[PastVersion]) -> dict[str, dg.MarkdownMetadataValue]:
    """The score of every version, with the band its exam leaves open."""
    scored = [past for past in reversed(history) if past.score.get("value") is not None]
    if not scored:
        return {}
    lines = {
        name: [(int(past.version), float(past.score[name])) for past in scored] for name in ("value", "low", "high")
    }
    metric = str(scored[-1].score["metric"]).replace("_", " ")
    chart = line_chart("Versions", "version", metric, lines)
    return {"score_by_version": picture(chart, f"{metric} of every version")}
