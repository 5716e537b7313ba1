"""`<model>/tokenized_dataset`: token ids, labels and packs, with the tokenizer and the one template that made them."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from llm_assets.assets.conventions import Lineage, column_schema, materialized, picture, table
from llm_assets.charts import bar_chart
from llm_assets.data import TokenizationConfig
from llm_assets.data.curation import dropped_by_reason
from llm_assets.data.token_checks import (
    eos_supervised,
    label_mask,
    special_tokens_sound,
    supervised_sample,
    template_parity,
    token_stats,
    truncation_share,
)
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore

TOKEN_STATS, EOS_SUPERVISED, LABEL_MASK = "token_stats", "eos_supervised", "label_mask"
SPECIAL_TOKENS, TRUNCATION_SHARE, TEMPLATE_PARITY = "special_tokens", "truncation_share", "template_parity"
COLUMNS = {
    "row_id": "The conversation this row was rendered from.",
    "input_ids": "Token ids of the whole conversation.",
    "labels": "The same ids where a token carries loss, -100 elsewhere; not shifted.",
    "prompt_tokens": "Tokens before the last answer.",
    "supervised_tokens": "Tokens that carry loss.",
}


def build_tokenized_dataset(lineage: Lineage, tokenization: TokenizationConfig) -> dg.AssetsDefinition:
    """The tokens of a lineage's conversations."""
    settings = tokenization.model_dump(exclude={"checks"})

    @lineage.asset(
        "tokenized_dataset",
        stage="data",
        kinds={"huggingface", "parquet"},
        version="1",
        settings=settings,
        deps=[lineage.key("chat_dataset"), lineage.key("base_model")],
        check_specs=lineage.blocking_checks(
            "tokenized_dataset",
            names={
                TOKEN_STATS: "Mean row length is within its band and near the previous dataset's.",
                EOS_SUPERVISED: "Every answer ends with an end-of-turn token that carries loss.",
                LABEL_MASK: "Exactly the assistant's text carries loss.",
                SPECIAL_TOKENS: "One bos at most; padding ends no turn and stands in no row.",
                TRUNCATION_SHARE: "Few rows exceed the length limit.",
                TEMPLATE_PARITY: "Token ids equal those of Hugging Face's apply_chat_template.",
            },
        ),
    )
    def tokenized_dataset(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        """Conversations as token ids with assistant-only labels, and packs of training rows.

        The tokenizer and the one chat template used lie beside the tokens and travel with every model made from them.
        """
        chat = store.open(context.instance, lineage.key("chat_dataset")).path
        base = store.open(context.instance, lineage.key("base_model")).path
        previous = _previous_statistics(context, store)
        bounds = tokenization.checks
        with store.staging() as staged:
            statistics = tokenize_dataset(chat, base, staged, tokenization, context.log.info)
            checks = {
                TOKEN_STATS: token_stats(statistics, bounds, previous),
                EOS_SUPERVISED: eos_supervised(staged, statistics["end_of_turn_ids"]),
                LABEL_MASK: label_mask(staged, chat, statistics, bounds),
                SPECIAL_TOKENS: special_tokens_sound(staged, statistics["end_of_turn_ids"]),
                TRUNCATION_SHARE: truncation_share(statistics, bounds),
                TEMPLATE_PARITY: template_parity(staged, chat, bounds.parity_rows),
            }
            artifact = store.publish(context.asset_key, staged)
        return materialized(artifact, _metadata(artifact.path, statistics), checks)

    return tokenized_dataset


def _previous_statistics(context: dg.AssetExecutionContext, store: ArtifactStore) -> dict[str, Any] | None:
    try:
        previous = store.open(context.instance, context.asset_key)
    except ArtifactMissing:
        return None
    return json.loads((previous.path / "statistics.json").read_text())


def _metadata(path: Path, statistics: dict[str, Any]) -> dict[str, Any]:
    names = ("tokens", "supervised_tokens", "supervised_share", "mean_length_tokens", "longest_row_tokens")
    histogram = dict(zip(map(str, statistics["histogram"]["edges"]), statistics["histogram"]["rows"], strict=True))
    metadata: dict[str, Any] = {
        "dagster/row_count": sum(statistics["rows"].values()),
        "dagster/column_schema": column_schema(path / "train.parquet", COLUMNS),
        **{name: statistics[name] for name in (*names, "packs", "packing_efficiency", "dropped_too_long")},
        "template_sha256": statistics["template_sha256"],
        "percentiles": table([statistics["percentiles"]]),
        "lengths": picture(bar_chart("Training rows by length in tokens", "rows", histogram), "token histogram"),
        "sample": dg.MetadataValue.md(_marked_sample(path)),
    }
    if statistics["dropped"]:
        metadata["dropped"] = table(dropped_by_reason(path / "dropped.parquet", statistics["dropped"]))
    return metadata


def _marked_sample(path: Path) -> str:
    """One training row as the model sees it, each supervised stretch between ⟦ and ⟧."""
    for _, pieces in supervised_sample(path, rows=1):
        text = "".join(f"⟦{piece}⟧" if on else piece for piece, on in pieces)
        return f"Supervised tokens stand between ⟦ and ⟧.\n\n````text\n{text[:6000]}\n````"
    return ""
