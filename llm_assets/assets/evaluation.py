"""The scoreboard of a lineage, and whether tuning was worth it."""

from collections.abc import Sequence

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, picture, table
from llm_assets.evaluation.candidates import list_candidates
from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.evaluate import evaluate, read_answer_rows
from llm_assets.evaluation.held_out import read_held_out
from llm_assets.evaluation.report import pareto_front, pareto_picture, scoreboard_rows, worst_regressions
from llm_assets.evaluation.scoreboard import BASE, MERGED
from llm_assets.evaluation.verdict import beats_base, variants_keep_quality
from llm_assets.quantization.hardware import HardwareConfig
from llm_assets.resources.artifact_store import ArtifactStore, digest
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.worker import Worker

BEATS_BASE = "beats_base"
KEEP_QUALITY = "variants_keep_quality"


def build_evaluation(
    lineage: Lineage, evaluation: EvaluationConfig, quantization_names: Sequence[str]
) -> dg.AssetsDefinition:
    """The `evaluation` asset: base, merged model and every named variant on the same held-out rows."""
    keys = {
        BASE: lineage.key("base_model"),
        MERGED: lineage.key("merged_model"),
        **{name: lineage.key("quantized", name) for name in quantization_names},
    }
    chat_key, tokenized_key = lineage.key("chat_dataset"), lineage.key("tokenized_dataset")

    @lineage.asset(
        "evaluation",
        stage="evaluation",
        kinds={"duckdb", "parquet"},
        version="1",
        settings=[evaluation],
        deps=[*keys.values(), chat_key, tokenized_key],
        check_specs=lineage.blocking_checks(
            "evaluation",
            names={
                BEATS_BASE: "The merged model beats the base on the primary metric, beyond chance.",
                KEEP_QUALITY: "Each variant keeps the merged model's primary metric (a warning).",
            },
        ),
        pool="gpu",
    )
    def _evaluation(
        context: dg.AssetExecutionContext, store: ArtifactStore, worker: Worker, hardware: HardwareResource
    ) -> dg.MaterializeResult:
        """Scoreboard of the base, the merged model and every quantized variant.

        All of them answer the same held-out test rows, from the tokens the adapter was trained on, through one engine
        process. Scored are the configured metrics, loss, stop rate, size and speed; differences come with paired
        bootstrap intervals. A candidate whose `engine` column says transformers was not measured for speed.
        """
        worker.require()
        opened = {name: store.open(context.instance, key) for name, key in keys.items()}
        chat, tokenized = (store.open(context.instance, key) for key in (chat_key, tokenized_key))
        needs_context = "sql_execution" in evaluation.metrics
        column = evaluation.sql_context_column if needs_context else None
        held_out = read_held_out(chat.path, tokenized.path, evaluation.rows, evaluation.seed, column)
        device = hardware.target_of(HardwareConfig()) if worker.backend == "kubernetes" else hardware.here()
        variants = {name: opened[name].path for name in quantization_names}
        candidates = list_candidates(opened[BASE].path, opened[MERGED].path, variants, device)
        inputs = {name: artifact.fingerprint for name, artifact in opened.items()}
        work_key = digest({**inputs, "rows": held_out.digest, "settings": evaluation.model_dump(mode="json")})
        with store.workspace(context.asset_key, work_key) as work, store.staging() as staged:
            scoreboard = evaluate(
                candidates,
                held_out,
                tokenizer=tokenized.path / "tokenizer",
                config=evaluation,
                work=work,
                out=staged,
                generate=lambda tasks: worker.generate(context, tasks, evaluation.generation, evaluation.engine),
                log=context.log.info,
            )
            artifact = store.publish(context.asset_key, staged)
        merged = scoreboard["candidates"][MERGED]
        worse = worst_regressions(read_answer_rows(artifact.path), limit=15)
        return materialized(
            artifact,
            {
                "rows": scoreboard["rows"],
                **{f"merged_{name}": value for name, value in merged.items() if isinstance(value, (int, float))},
                "scoreboard": table(scoreboard_rows(scoreboard)),
                "quality_against_size": picture(pareto_picture(scoreboard), "primary metric against bytes"),
                "pareto_front": ", ".join(pareto_front(scoreboard)),
                **({"worst_regressions": table(worse)} if worse else {}),
            },
            checks={
                BEATS_BASE: beats_base(scoreboard, evaluation.min_improvement),
                KEEP_QUALITY: variants_keep_quality(scoreboard, evaluation.min_recovery),
            },
        )

    return _evaluation
