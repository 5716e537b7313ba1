"""`<model>/tokenized_dataset`: token ids, labels and packs, with the tokenizer and the one template that made them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, materialized, picture, table
from llm_assets.charts import bar_chart
from llm_assets.core import CheckResult
from llm_assets.data import TokenizationConfig
from llm_assets.data.dropped import dropped_by_reason
from llm_assets.data.template_parity import template_parity, transformers_ids
from llm_assets.data.token_checks import (
    eos_supervised,
    label_mask,
    special_tokens_sound,
    supervised_sample,
    token_stats,
    truncation_share,
)
from llm_assets.data.token_files import COLUMNS, TokenFile
from llm_assets.data.token_samples import Sample, sampled_rows
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.engine.job import EngineEnvironmentMissing
from llm_assets.engine.tokenizer import engine_token_ids
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore
from llm_assets.resources.worker import Worker

TOKEN_STATS, EOS_SUPERVISED, LABEL_MASK = "token_stats", "eos_supervised", "label_mask"
SPECIAL_TOKENS, TRUNCATION_SHARE, TEMPLATE_PARITY = "special_tokens", "truncation_share", "template_parity"


def build_tokenized_dataset(lineage: Lineage, tokenization: TokenizationConfig) -> dg.AssetsDefinition:
    """The tokens of a lineage's conversations."""
    settings = tokenization.model_dump(exclude={"checks", "processes"})

    @lineage.asset(
        "tokenized_dataset",
        stage="data",
        kinds={"huggingface", "arrow"},
        version="2",
        settings=settings,
        deps=[lineage.key("chat_dataset"), lineage.key("base_model")],
        check_specs=lineage.blocking_checks(
            "tokenized_dataset",
            names={
                TOKEN_STATS: "Row lengths are within their band and near the previous dataset's.",
                EOS_SUPERVISED: "Every answer ends with an end-of-turn token that carries loss.",
                LABEL_MASK: "Exactly the assistant's text carries loss.",
                SPECIAL_TOKENS: "One bos at most; padding ends no turn and stands in no row.",
                TRUNCATION_SHARE: "Few rows exceed the length limit.",
                TEMPLATE_PARITY: "Token ids equal those of transformers and of the engine's tokenizer.",
            },
        ),
    )
    def tokenized_dataset(
        context: dg.AssetExecutionContext, store: ArtifactStore, worker: Worker
    ) -> dg.MaterializeResult:
        """Conversations as token ids with assistant-only labels, and packs of training rows.

        The tokenizer and the one chat template used lie beside the tokens and travel with every model made from them.
        Conversations unchanged since the last materialization keep their tokens; only the others are encoded again.
        """
        chat = store.open(context.instance, lineage.key("chat_dataset")).path
        base = store.open(context.instance, lineage.key("base_model")).path
        published = _published(context, store)
        before = json.loads((published / "statistics.json").read_text()) if published else None
        bounds = tokenization.checks
        with store.staging() as staged:
            statistics = tokenize_dataset(chat, base, staged, tokenization, context.log.info, published)
            samples = list(sampled_rows(staged, chat, bounds.parity_rows))
            checks = {
                TOKEN_STATS: token_stats(statistics, bounds, before),
                EOS_SUPERVISED: eos_supervised(staged, statistics["end_of_turn_ids"]),
                LABEL_MASK: label_mask(staged, chat, statistics, bounds),
                SPECIAL_TOKENS: special_tokens_sound(staged, statistics["end_of_turn_ids"]),
                TRUNCATION_SHARE: truncation_share(statistics, bounds),
                TEMPLATE_PARITY: _parity(staged / "tokenizer", base / "config.json", samples, worker),
            }
            artifact = store.publish(context.asset_key, staged)
        return materialized(artifact, _metadata(artifact.path, statistics), checks)

    return tokenized_dataset


def _published(context: dg.AssetExecutionContext, store: ArtifactStore) -> Path | None:
    try:
        return store.open(context.instance, context.asset_key).path
    except ArtifactMissing:
        return None


def _parity(tokenizer: Path, model_config: Path, samples: Sequence[Sample], worker: Worker) -> CheckResult:
    """Compare with both environments; an engine that is only in pods, or nowhere, leaves a warning of its own."""
    ours, absent, engine = transformers_ids(tokenizer, samples, model_config), "", None
    if worker.backend == "kubernetes":
        absent = (
            "it runs in pods only. Run `make engine-env` where this step runs and set the worker's backend to local."
        )
    else:
        try:
            engine = engine_token_ids(worker.python, tokenizer, samples, model_config)
        except EngineEnvironmentMissing as missing:
            absent = str(missing)
    return template_parity(samples, ours, engine, absent)


def _metadata(path: Path, statistics: dict[str, Any]) -> dict[str, Any]:
    names = ("tokens", "supervised_tokens", "supervised_share", "mean_length_tokens", "longest_row_tokens")
    more = ("characters_per_token", "packs", "packing_efficiency", "dropped_too_long", "cut_rows", "truncated_share")
    histogram = dict(zip(map(str, statistics["histogram"]["edges"]), statistics["histogram"]["rows"], strict=True))
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(statistics["rows"].values()),
        "dagster/column_schema": _columns(path),
        **{name: statistics[name] for name in (*names, *more)},
        "template_sha256": statistics["template_sha256"],
        "template_date": statistics["date_string"],
        "percentiles": table(
            [
                {"split": split, "tokens": name, **values["lengths"][name]}
                for split, values in statistics["splits"].items()
                for name in values["lengths"]
            ]
        ),
        "longest_rows": table(statistics["longest_rows"]),
        "lengths": picture(bar_chart("Training rows by length in tokens", "rows", histogram), "token histogram"),
        "sample": dg.MetadataValue.md(_marked_sample(path)),
    }
    if statistics["dropped"]:
        metadata["dropped"] = table(dropped_by_reason(path / "dropped.parquet", statistics["dropped"]))
    return metadata


def _columns(path: Path) -> dg.TableSchema:
    fields = TokenFile(path, "train").schema
    return dg.TableSchema([dg.TableColumn(f.name, str(f.type), COLUMNS[f.name]) for f in fields])


def _marked_sample(path: Path) -> str:
    """One training row as the model sees it, each supervised stretch between ⟦ and ⟧."""
    for _, pieces in supervised_sample(path, rows=1):
        text = "".join(f"⟦{piece}⟧" if on else piece for piece, on in pieces)
        return f"Supervised tokens stand between ⟦ and ⟧.\n\n````text\n{text[:6000]}\n````"
    return ""
