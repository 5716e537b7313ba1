"""The model card of a version: how good it is, how to run it, what it costs, how it was made; every line a record's."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_assets.evaluation.scoreboard import MERGED

HIDDEN = ("engine_reason", "engine")
COSTS = ("bytes", "tokens_per_second", "load_seconds")  # have a table of their own


def write_model_card(name: str, metadata: Mapping[str, Any]) -> str:
    """Markdown for the registry, the Dagster UI and whoever finds the directory.

    Args:
        name: Registered name.
        metadata: As returned by `contents.describe`.
    """
    parts = [_summary(name, metadata), _quality(metadata), _use(name, metadata), _cost(metadata), _data(metadata)]
    return "\n\n".join([*parts, _recipe(metadata), _limits(metadata), _origin(metadata)]) + "\n"


def _summary(name: str, metadata: Mapping[str, Any]) -> str:
    shape, scoreboard = metadata["architecture"], metadata["scoreboard"]
    variants = ", ".join(f"`{variant}`" for variant in metadata["variants"]) or "none"
    base = f", fine-tuned from `{metadata['base']}`" if metadata["base"] else ", fine-tuned"
    score = metadata["scores"].get(MERGED)
    reached = f" It reaches **{_interval(score)}** {_words(scoreboard['primary'])}." if score else ""
    return (
        f"# {name}\n\n"
        f"A {shape['class']} with {shape['parameters']:,} parameters{base} by the lineage `{metadata['model']}`."
        f"{reached} The version holds the merged weights in {metadata['dtypes']['preferred']}, the adapter, and these "
        f"quantized variants: {variants}."
    )


def _quality(metadata: Mapping[str, Any]) -> str:
    scoreboard, scores = metadata["scoreboard"], metadata["scores"]
    primary, recovery = scoreboard["primary"], scoreboard["recovery"]
    lines = [
        {
            "candidate": candidate,
            primary: _interval(scores[candidate]) if candidate in scores else line.get(primary),
            **{key: value for key, value in line.items() if key not in (primary, *HIDDEN, *COSTS)},
            **({"kept": _interval(recovery[candidate])} if candidate in recovery else {}),
        }
        for candidate, line in scoreboard["candidates"].items()
    ]
    gain = scoreboard["improvement"].get(MERGED, {})
    exam = f"{scoreboard['rows']} held-out rows (exam `{scoreboard['rows_digest']}`)"
    parts = [
        "## Quality",
        f"On {exam}, every candidate answering the same ones; ranges are 95 % bootstrap intervals:",
        _table(lines),
    ]
    if gain.get("value") is not None:
        parts.append(
            f"Against its base the merged model gains **{gain['value']:+.1%}** {_words(primary)} "
            f"(95 % interval {gain['low']:+.1%} to {gain['high']:+.1%})."
        )
    return "\n\n".join(parts)


def _use(name: str, metadata: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in metadata["generation"].items())
    served = metadata["served"]
    columns = ", ".join(f"`{column}` ({kind})" for column, kind in served["input_columns"].items())
    gguf = [f"`{v}`" for v, made in metadata["variants"].items() if made.get("engine") == "llama_cpp"]
    prompts = [f"`{prompt['uri']}`" for prompt in metadata["prompts"]]
    return (
        "## Use\n\n```python\n"
        "from llm_assets import run_inference\n\n"
        f'run_inference(input_source="rows.parquet", model_name="{name}", output_table="answers.parquet")\n\n'
        "from llm_assets.registry.versions import load_version\n\n"
        f'version = load_version("{name}", "champion")\n'
        "version.model_directory            # a plain Hugging Face directory: hand it to vLLM or transformers\n"
        'version.variant_directory("merged")  # or a variant\'s name\n'
        "version.generation                 # the settings the numbers above were measured with\n```\n\n"
        f"`mlflow models serve -m models:/{name}@champion --env-manager local` answers as {served['task']}, asked by "
        f"{columns}, with the parameters temperature, top_p, max_tokens, stop, seed and candidate_count; MLflow drops "
        f"any other without a word. {_payloads(list(served['input_columns']))}\n\n"
        f"Generation defaults: {settings}."
        + (f" Training rows were asked by {', '.join(prompts)}." if prompts else "")
        + (f" {', '.join(gguf)} run with llama.cpp, everything else with vLLM." if gguf else "")
    )


def _payloads(columns: Sequence[str]) -> str:
    """The body of a request in MLflow's four forms."""
    rows = "[[...], [...]]" if columns == ["messages"] else '["...", "..."]'
    row = "[{" + ", ".join(f'"{column}": "..."' for column in columns) + "}]"
    alone = len(columns) == 1
    names = ", ".join(f'"{column}"' for column in columns)
    forms = (
        f'{{"instances": {rows if alone else row}}}',
        f'{{"inputs": {{"{columns[0]}": {rows}}}}}' if alone else f'{{"inputs": {row}}}',
        '{"dataframe_records": ' + (row.replace('"..."', "[...]") if columns == ["messages"] else row) + "}",
        f'{{"dataframe_split": {{"columns": [{names}], "data": [[...], [...]]}}}}',
    )
    return f"Send one of {', '.join(f'`{form}`' for form in forms)}" + ', beside `"params": {"max_tokens": 64}`.'


def _cost(metadata: Mapping[str, Any]) -> str:
    dtypes, shape = metadata["dtypes"], metadata["architecture"]
    lines = [
        {
            "variant": variant,
            "weights (MB)": round(line["bytes"] / 1e6, 1),
            "computes in": dtypes["serving"].get(variant),
            "KV cache in": dtypes["kv_cache"].get(variant),
            "completion tokens/s": line.get("tokens_per_second"),
            "hours per million": _hours_per_million(line.get("tokens_per_second")),
            "load (s)": line.get("load_seconds"),
            "engine": line.get("engine"),
        }
        for variant, line in metadata["scoreboard"]["candidates"].items()
        if variant in dtypes["serving"]
    ]
    training = metadata["training"]
    trained = [
        f"{training[key]:,} {_words(key)}" for key in ("steps", "tokens", "supervised_tokens") if key in training
    ]
    return "\n\n".join(
        [
            "## Cost",
            _table(lines),
            f"Every token in flight takes {shape['kv_bytes_per_token']:,} bytes of KV cache at {dtypes['preferred']}. "
            "Speeds are those of the machine that evaluated it, all rows at once; hours are its hours for a million "
            "completion tokens." + (f" Training took {', '.join(trained)}." if trained else ""),
        ]
    )


def _data(metadata: Mapping[str, Any]) -> str:
    rows, lengths = metadata["data"]["rows"], metadata["lengths"]
    prompt, completion = (
        ", ".join(f"{percentile} {tokens}" for percentile, tokens in sorted(lengths[part].items(), key=_percentile))
        for part in ("prompt", "completion")
    )
    parts = ["## Data"]
    if rows:
        splits = ", ".join(f"{count:,} {split}" for split, count in rows.get("splits", {}).items())
        dropped = ", ".join(f"{count:,} {_words(reason)}" for reason, count in rows.get("dropped", {}).items() if count)
        parts.append(
            f"{rows['ingested']:,} rows were ingested and {rows['kept']:,} kept ({splits}). "
            f"Dropped: {dropped or 'none'}."
        )
    parts.append(f"Tokens of a training row. Prompt: {prompt}. Completion: {completion}.")
    return "\n\n".join(parts)


def _hours_per_million(tokens_per_second: float | None) -> float | None:
    return 1e6 / tokens_per_second / 3600 if tokens_per_second else None


def _percentile(entry: tuple[str, int]) -> int:
    return int(entry[0].removeprefix("p"))


def _recipe(metadata: Mapping[str, Any]) -> str:
    training, merge = metadata["training"], metadata["merge"]
    parameters = {key: value for key, value in training.get("parameters", {}).items() if _is_scalar(value)}
    losses = ""
    if None not in (training.get("base_evaluation_loss"), training.get("evaluation_loss")):
        losses = (
            f" The loss on held-out answers fell from {training['base_evaluation_loss']:.3f} (base) to "
            f"{training['evaluation_loss']:.3f} nats per token."
        )
    merged = ", ".join(f"{_words(key)} {_shown(value)}" for key, value in merge.items() if _is_scalar(value))
    parts = [
        "## Recipe",
        f"Trained with {training.get('method', 'LoRA')}.{losses} Merged: {merged or 'not recorded'}.",
        _facts("Hyper-parameters", parameters),
    ]
    return "\n\n".join(part for part in parts if part)


def _origin(metadata: Mapping[str, Any]) -> str:
    facts = [_facts("Content fingerprints", metadata["fingerprints"]), _facts("Made by", metadata["tags"])]
    return "\n\n".join(["## Origin", *(part for part in facts if part)])


def _limits(metadata: Mapping[str, Any]) -> str:
    scoreboard = metadata["scoreboard"]
    merged = scoreboard["candidates"].get(MERGED, {})
    context = metadata["architecture"]["context_tokens"]
    notes = [
        f"Answers are cut at {metadata['generation']['max_new_tokens']} tokens; in the evaluation "
        f"{merged.get('length_capped_share', 0):.1%} of them were.",
        f"Prompts longer than {metadata['lengths']['prompt']['p100']} tokens did not occur in training; the context "
        f"ends at {context:,}.",
    ]
    score = metadata["scores"].get(MERGED)
    if score and score["high"] - score["low"] > 0.1:
        notes.append(
            f"{scoreboard['rows']} held-out rows leave the score open by {score['high'] - score['low']:.0%}: a "
            "difference smaller than that says little."
        )
    if "execution_rows" in merged and merged["execution_rows"] < scoreboard["rows"]:
        silent = scoreboard["rows"] - merged["execution_rows"]
        notes.append(f"{silent} rows say nothing about execution accuracy: their expected SQL returns no row.")
    simulated = [n for n, line in scoreboard["candidates"].items() if line.get("engine") == "transformers"]
    if simulated:
        notes.append(f"{', '.join(simulated)}: quality scored with transformers, speed not measured on its engine.")
    return "## Limits\n\n" + "\n".join(f"- {note}" for note in notes)


def _interval(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "undefined"
    return f"{score['value']:.1%} ({score['low']:.1%} to {score['high']:.1%})"


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    return f"### {title}\n\n" + "\n".join(f"- `{key}`: {_shown(value)}" for key, value in sorted(facts.items()))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column not in HIDDEN]
    header = [" | ".join(_words(column) for column in columns), " | ".join("---" for _ in columns)]
    body = [" | ".join(_shown(row.get(column)) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in [*header, *body])


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
