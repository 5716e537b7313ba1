"""A conversation has the same token ids here, in transformers and in the engine, or training is for another model.

Each side renders the template and encodes the text with its own code and its own release; the engine's runs in its own
environment. Where that is absent the check says so as a warning of its own, and is not passed.

Which class reads a tokenizer depends on the model's config.json beside it: several named classes rebuild what
tokenizer.json holds, unless the model is one whose file is to be taken as it is. So both sides load the tokenizer as it
lies in a served model, beside that configuration.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_assets.core import CheckResult, LLMAssetsError
from llm_assets.data.chat_template import DATE_STRING, pinned_strftime
from llm_assets.data.messages import for_template, tools_for_template
from llm_assets.data.supervision import without_flags
from llm_assets.data.token_samples import Sample

SAMPLE_ROWS = 20
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # take tokenizer.json as it is, whatever the model


class TokenizerNotLoaded(LLMAssetsError):
    """transformers cannot load or apply the tokenizer."""


@dataclass(frozen=True)
class TokenIds:
    """Ids of one conversation, whole and up to where the last answer starts."""

    row: list[int]
    prompt: list[int]


def transformers_ids(tokenizer: Path, samples: Sequence[Sample], model_config: Path | None = None) -> list[TokenIds]:
    """Ids by `apply_chat_template` of this environment's transformers.

    Args:
        tokenizer: Directory with the tokenizer's files and the template.
        samples: Rows to encode.
        model_config: `config.json` of the model the tokenizer belongs to, which may decide its class.

    Raises:
        TokenizerNotLoaded: transformers refuses the tokenizer, or its template.
    """
    pinned = {"date_string": DATE_STRING, "strftime_now": pinned_strftime, "tokenize": True, "return_dict": False}
    found = []
    try:
        with as_served(tokenizer, model_config) as directory:
            reference = _load(directory)
        for messages, tools in map(rendered, samples):
            row = reference.apply_chat_template(messages, tools=tools, **pinned)
            prompt = reference.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, **pinned)
            found.append(TokenIds(list(row), list(prompt)))
    except Exception as error:  # tokenizers raises bare ones
        raise TokenizerNotLoaded(
            f"transformers cannot apply the tokenizer of {tokenizer}: {type(error).__name__}: {error}. Name another "
            "tokenizer_class in the base's tokenizer_config.json (PreTrainedTokenizerFast takes tokenizer.json as it "
            "is), or save the tokenizer with the installed release."
        ) from error
    return found


@contextmanager
def as_served(tokenizer: Path, model_config: Path | None) -> Iterator[Path]:
    """The tokenizer's files beside the model's config.json, as a served model has them, for as long as it is open.

    The two are kept apart in a dataset, where a config.json would overwrite that of the model made from it.
    """
    if model_config is None or not model_config.exists():
        yield tokenizer
        return
    with TemporaryDirectory() as scratch:
        directory = Path(scratch) / "tokenizer"
        shutil.copytree(tokenizer, directory)
        shutil.copyfile(model_config, directory / "config.json")
        yield directory


def _load(directory: Path) -> Any:
    """What `AutoTokenizer` finds; the generic classes are named outright, which saves it seconds of imports."""
    import transformers

    named = json.loads((directory / "tokenizer_config.json").read_text()).get("tokenizer_class")
    generic = getattr(transformers, named, None) if named in GENERIC else None
    if generic is not None:
        return generic.from_pretrained(str(directory))
    return transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)


def rendered(sample: Sample) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Messages and tools as a template takes them."""
    return without_flags(for_template(sample.messages)), tools_for_template(sample.tools)


def template_parity(
    samples: Sequence[Sample],
    transformers: Sequence[TokenIds],
    engine: Sequence[TokenIds] | None,
    engine_absent: str = "",
) -> CheckResult:
    """Token ids of sampled rows and of their prompts equal those of transformers and of the engine's tokenizer.

    Args:
        samples: Rows as they are stored.
        transformers: Ids of the same rows, by transformers.
        engine: Ids of the same rows, by the engine's environment; None where there is none.
        engine_absent: Why there is none, and the remedy.
    """
    different = [
        row
        for name, ids in (("transformers", transformers), ("engine", engine or ()))
        for row in _compared(name, samples, ids)
    ]
    rows = len({row["row_id"] for row in different})
    sides = "apply_chat_template of transformers" + (" and of the engine's tokenizer" if engine is not None else "")
    equal = f"{len(samples) - rows} of {len(samples)} sampled rows have the token ids of {sides}."
    sound = bool(samples) and not different
    return CheckResult(
        passed=sound and engine is not None,
        summary=equal if engine is not None else f"{equal} The engine's tokenizer was not compared: {engine_absent}",
        numbers={"rows_compared": len(samples), "rows_different": rows, "engine_compared": engine is not None},
        rows=different[:SAMPLE_ROWS],
        warn_only=sound and engine is None,
    )


def _compared(side: str, samples: Sequence[Sample], ids: Sequence[TokenIds]) -> list[dict[str, Any]]:
    different = []
    for sample, theirs in zip(samples, ids, strict=False):
        for part, ours, other in (
            ("row", sample.input_ids, theirs.row),
            ("prompt", sample.input_ids[: sample.prompt_tokens], theirs.prompt),
        ):
            if other != ours:
                place = next(
                    (n for n, (a, b) in enumerate(zip(ours, other, strict=False)) if a != b), min(len(ours), len(other))
                )
                named = {"split": sample.split, "row_id": sample.row_id}
                different.append({**named, "against": side, "part": part, "first_difference_at": place})
    return different
