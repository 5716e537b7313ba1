"""The model card of a version: how good it is, how to run it, how it was made; every line from a record."""

from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = ("engine_reason",)


def write_model_card(name: str, metadata: Mapping[str, Any]) -> str:
    """Markdown for the registry, the Dagster UI and whoever finds the directory.

    Args:
        name: Registered name.
        metadata: As returned by `contents.describe`.
    """
    about = [_quality(metadata), _use(name, metadata), _making(metadata), _limits(metadata)]
    return "\n\n".join([_summary(name, metadata), *about]) + "\n"


def _summary(name: str, metadata: Mapping[str, Any]) -> str:
    shape = metadata["architecture"]
    variants = ", ".join(metadata["variants"]) or "none"
    return (
        f"# {name}\n\n"
        f"A {shape['class']} with {shape['parameters']:,} parameters ({shape['layers']} layers, vocabulary "
        f"{shape['vocabulary']:,}, {shape['context_tokens']:,} context tokens), fine-tuned by the lineage "
        f"`{metadata['model']}`. The version holds the merged weights and these quantized variants: {variants}."
    )


def _quality(metadata: Mapping[str, Any]) -> str:
    scoreboard = metadata["scoreboard"]
    lines = [{"candidate": candidate, **line} for candidate, line in scoreboard["candidates"].items()]
    gain = scoreboard["improvement"].get("merged", {})
    exam = f"{scoreboard['rows']} held-out rows (exam `{scoreboard['rows_digest']}`)"
    parts = ["## Quality", f"On {exam}:", _table(lines)]
    if gain.get("value") is not None:
        parts.append(
            f"Against its base the merged model gains **{gain['value']:+.1%}** {_words(scoreboard['primary'])} "
            f"(95 % interval {gain['low']:+.1%} to {gain['high']:+.1%})."
        )
    kept = [
        f"- `{variant}` keeps {entry['value']:.1%} of it ({entry['low']:.1%} to {entry['high']:.1%})"
        for variant, entry in scoreboard["recovery"].items()
        if entry["value"] is not None
    ]
    return "\n\n".join([*parts, *(["\n".join(kept)] if kept else [])])


def _use(name: str, metadata: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={value!r}" for key, value in metadata["generation"].items())
    gguf = [f"`{v}`" for v, made in metadata["variants"].items() if made.get("engine") == "llama_cpp"]
    return (
        "## Use\n\n```python\n"
        "from llm_assets.registry.versions import load_version\n\n"
        f'version = load_version("{name}", "champion")\n'
        "version.model_directory            # a plain Hugging Face directory: hand it to vLLM or transformers\n"
        'version.variant_directory("merged")  # or a variant\'s name\n'
        "version.generation                 # the settings the numbers above were measured with\n```\n\n"
        f"Generation defaults: {settings}. They are the signature's parameters."
        + (f" {', '.join(gguf)} run with llama.cpp, everything else with vLLM." if gguf else "")
    )


def _making(metadata: Mapping[str, Any]) -> str:
    lengths = metadata["lengths"]
    prompt, completion = (
        ", ".join(f"{percentile} {tokens}" for percentile, tokens in lengths[part].items())
        for part in ("prompt", "completion")
    )
    training = {key: value for key, value in metadata["training"].items() if _is_scalar(value)}
    parameters = metadata["training"].get("parameters", {})
    parts = [
        "## How it was made",
        f"Training rows have these token lengths. Prompt: {prompt}. Completion: {completion}.",
        _facts("Training", {**training, **{k: v for k, v in parameters.items() if _is_scalar(v)}}),
        _facts("Merge", {key: value for key, value in metadata["merge"].items() if _is_scalar(value)}),
        _facts("Content fingerprints", metadata["fingerprints"]),
        _facts("Origin", metadata["tags"]),
    ]
    return "\n\n".join(part for part in parts if part)


def _limits(metadata: Mapping[str, Any]) -> str:
    scoreboard = metadata["scoreboard"]
    merged = scoreboard["candidates"].get("merged", {})
    notes = [
        f"Answers are cut at {metadata['generation']['max_new_tokens']} tokens; in the evaluation "
        f"{merged.get('length_capped_share', 0):.1%} of them were.",
        f"Prompts longer than {metadata['lengths']['prompt']['p100']} tokens did not occur in training.",
    ]
    if "execution_rows" in merged and merged["execution_rows"] < scoreboard["rows"]:
        silent = scoreboard["rows"] - merged["execution_rows"]
        notes.append(f"{silent} rows say nothing about execution accuracy: their expected SQL returns no row.")
    simulated = [n for n, line in scoreboard["candidates"].items() if line.get("engine") == "transformers"]
    if simulated:
        notes.append(f"{', '.join(simulated)}: quality scored with transformers, speed not measured on its engine.")
    return "## Limits\n\n" + "\n".join(f"- {note}" for note in notes)


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
