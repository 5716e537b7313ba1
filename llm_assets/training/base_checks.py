"""Whether a base model is fit to be fine-tuned, read from its files without loading it.

Both verdicts fail hours later elsewhere: an untrained end-of-turn row gives a model that never stops, an unusual
architecture an adapter that cannot be merged, quantized or run.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llm_assets.core import CheckResult
from llm_assets.training.model_directory import BaseModelIncomplete, chat_template, weight_files
from llm_assets.training.own_code import runs_own_code
from llm_assets.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Dense causal decoders that peft 0.21 adapts, llm-compressor 0.14 quantizes and vLLM 0.32 runs.
SUPPORTED_MODEL_TYPES = {
    "gemma2": "Gemma2ForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
SMALLEST_NORM_RATIO = 0.1  # the demo base's own special tokens measure 0.3 and more; reserved rows are near 0
SAME_ROW_SHARE = 0.05  # of the median norm; resized vocabularies repeat the mean row up to noise far below this
SAMPLED_ROWS = 1024
INPUT_ROWS = "model.embed_tokens.weight"
OUTPUT_ROWS = "lm_head.weight"


@dataclass(frozen=True)
class BaseModelDescription:
    """What a person wants to know of a base model at a glance.

    Attributes:
        special_tokens: One row per special token of the tokenizer: token, id, and whether the chat template writes it.
    """

    architecture: str
    parameters: int
    vocabulary_size: int
    context_tokens: int
    template_sha256: str
    special_tokens: list[dict[str, Any]]


def describe(directory: Path) -> BaseModelDescription:
    """Read the description off the directory's headers; no weights are loaded."""
    config = json.loads((directory / "config.json").read_text())
    tokenizer = _tokenizer(directory)
    used = template_token_ids(tokenizer)
    rows = [
        {"token": str(token), "id": index, "in_chat_template": index in used, "ends_turn": index in _end_ids(directory)}
        for index, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special
    ]
    return BaseModelDescription(
        architecture=(config.get("architectures") or ["unknown"])[0],
        parameters=_parameters(directory),
        vocabulary_size=int(config["vocab_size"]),
        context_tokens=int(config.get("max_position_embeddings", 0)),
        template_sha256=hashlib.sha256((chat_template(directory) or "").encode()).hexdigest(),
        special_tokens=rows[:20],
    )


def supported_architecture(directory: Path) -> CheckResult:
    """A full-precision causal language model of a kind that training, quantization and engine all know."""
    config = json.loads((directory / "config.json").read_text())
    model_type = str(config.get("model_type"))
    architecture = (config.get("architectures") or ["none"])[0]
    problems = []
    if model_type not in SUPPORTED_MODEL_TYPES:
        problems.append(f"model type {model_type} is not one of {', '.join(SUPPORTED_MODEL_TYPES)}")
    elif architecture != SUPPORTED_MODEL_TYPES[model_type]:
        problems.append(f"{architecture} is no causal language model; expected {SUPPORTED_MODEL_TYPES[model_type]}")
    if "quantization_config" in config:
        problems.append("the weights are already quantized; fine-tune the full-precision release instead")
    if "auto_map" in config and not runs_own_code(directory):
        problems.append("it calls code from its repository, which is not there; set base_model.trust_remote_code")
    summary = "; ".join(problems) or f"{architecture} is supported by training, quantization and engine."
    return CheckResult(not problems, summary, {"supported": not problems})


def trained_special_tokens(directory: Path, training: TrainingConfig | None = None) -> CheckResult:
    """The rows of every special token the chat template writes were trained, not left as they were initialised.

    Input rows are read for all of them and, where the output matrix is separate, its rows for those that end a turn.
    Rows that `training` is going to train are listed and do not fail.
    """
    tokenizer = _tokenizer(directory)
    used = sorted(template_token_ids(tokenizer))
    matrices: dict[Literal["input", "output"], tuple[str, list[int]]] = {"input": (INPUT_ROWS, used)}
    if not json.loads((directory / "config.json").read_text()).get("tie_word_embeddings", False):
        matrices["output"] = (OUTPUT_ROWS, [index for index in used if index in _end_ids(directory)])
    rows: list[dict[str, Any]] = []
    untrained: list[str] = []
    for matrix, (name, ids) in matrices.items():
        for index, (ratio, reason) in zip(ids, _verdicts(directory, name, ids, len(tokenizer)), strict=True):
            token = str(tokenizer.convert_ids_to_tokens(index))
            rows.append(
                {"token": token, "id": index, "matrix": matrix, "norm_ratio": round(ratio, 3), "verdict": reason}
            )
            untrained += [token] if reason and not (training and training.trains_row(token, matrix)) else []
    numbers = {"template_tokens": len(used), "untrained_tokens": len(untrained)}
    if untrained:
        names = list(dict.fromkeys(untrained))
        summary = (
            f"The chat template writes {', '.join(names)}, whose rows the base model never trained. Use the instruct "
            f"variant of this base, or train these rows: training: {{trainable_tokens: {json.dumps(names)}}}."
        )
        return CheckResult(False, summary, numbers, rows)
    late = f", {count} of them by this lineage" if (count := sum(bool(row["verdict"]) for row in rows)) else ""
    return CheckResult(True, f"All {len(used)} special tokens of the chat template are trained{late}.", numbers, rows)


def untrained_reason(row: np.ndarray, ordinary: np.ndarray, unused: np.ndarray) -> tuple[float, str]:
    """Judge one embedding row by its neighbours.

    Args:
        row: The token's row, shape `(hidden,)`, float32.
        ordinary: Rows of ordinary tokens, shape `(n, hidden)`, n > 0.
        unused: Rows beyond the tokenizer's vocabulary, shape `(m, hidden)`; m may be 0.

    Returns:
        The row's norm over the median norm of ordinary rows, and why it counts as untrained, empty if it does not.
    """
    median = float(np.median(np.linalg.norm(ordinary, axis=1))) or 1.0
    ratio = float(np.linalg.norm(row)) / median
    if ratio < SMALLEST_NORM_RATIO:
        return ratio, f"norm is {ratio:.3f} of the median row's"
    if float(np.linalg.norm(row - ordinary.mean(axis=0))) < SAME_ROW_SHARE * median:
        return ratio, "equals the mean of all rows, as a resized vocabulary does"
    if len(unused) and float(np.linalg.norm(unused - row, axis=1).min()) < SAME_ROW_SHARE * median:
        return ratio, "equals a row no token uses"
    return ratio, ""


def template_token_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of the special tokens that the chat template writes around a user and an assistant turn."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special.intersection(tokenizer(text, add_special_tokens=False)["input_ids"])


def _verdicts(directory: Path, name: str, ids: Sequence[int], vocabulary: int) -> list[tuple[float, str]]:
    with _tensor(directory, name) as matrix:
        total = matrix.get_shape()[0]
        spread = np.unique(np.linspace(0, min(vocabulary, total) - 1, SAMPLED_ROWS).astype(int))
        ordinary = _rows(matrix, [index for index in spread.tolist() if index not in ids])
        unused = _rows(matrix, list(range(vocabulary, total))[:SAMPLED_ROWS])
        return [untrained_reason(_rows(matrix, [index])[0], ordinary, unused) for index in ids]


@contextmanager
def _tensor(directory: Path, name: str) -> Iterator[Any]:
    """Open one tensor for reading by row, whichever file holds it."""
    from safetensors import safe_open

    for file in weight_files(directory):
        with safe_open(directory / file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  # the handle is no mapping
                yield tensors.get_slice(name)
                return
    raise BaseModelIncomplete(f"{directory} has no tensor {name}. Complete the download.")


def _rows(matrix: Any, indices: Sequence[int]) -> np.ndarray:
    width = matrix.get_shape()[1]
    rows = [matrix[index : index + 1].float().numpy() for index in indices]
    return np.concatenate(rows) if rows else np.empty((0, width), dtype=np.float32)


def _parameters(directory: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in weight_files(directory):
        with safe_open(directory / file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _end_ids(directory: Path) -> set[int]:
    path = directory / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return {ends} if isinstance(ends, int) else set(ends or ())


def _tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, trust_remote_code=runs_own_code(directory))
