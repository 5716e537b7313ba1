"""What a model predicts on held-out rows, one row at a time, by transformers for every scheme.

transformers decompresses compressed-tensors weights and simulates the quantized activations, and reads GGUF, so quality
can be measured where the engine of the scheme cannot run. The cost: 16-bit memory and no batching.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llm_assets.quantization.quantize import gguf_file


@dataclass(frozen=True)
class RowStatistics:
    """Predictions of one model on `n` rows, over supervised tokens only.

    Attributes:
        row_ids: Ids of the rows, `n`.
        losses: Sum of the negative log-likelihoods of a row's supervised tokens in nats, shape `(n,)`.
        correct: Supervised tokens whose most likely prediction is right, shape `(n,)`.
        tokens: Supervised tokens, shape `(n,)`.
        predictions: Most likely token at each supervised position, one int array per row.
    """

    row_ids: list[str]
    losses: np.ndarray
    correct: np.ndarray
    tokens: np.ndarray
    predictions: list[np.ndarray]


def row_statistics(model_directory: Path, held_out: pa.Table, log: Callable[[str], None]) -> RowStatistics:
    """Forward held-out rows through a model directory, merged or variant.

    Args:
        model_directory: Hugging Face directory, or a directory with one `.gguf` file.
        held_out: Columns `row_id`, `input_ids` and `labels` (not shifted, -100 where there is no loss).
        log: Receives a line every 64 rows.
    """
    rows = held_out.select(["row_id", "input_ids", "labels"]).to_pylist()
    losses, correct, tokens, predictions = [], [], [], []
    with opened(model_directory) as model:
        for done, row in enumerate(rows):
            nll, predicted, expected = _supervised(model, row["input_ids"], np.asarray(row["labels"]))
            losses.append(nll)
            correct.append(int((predicted == expected).sum()))
            tokens.append(len(expected))
            predictions.append(predicted)
            if done % 64 == 63:
                log(f"{model_directory.name}: {done + 1} of {len(rows)} held-out rows")
    return RowStatistics(
        held_out["row_id"].to_pylist(), np.asarray(losses), np.asarray(correct), np.asarray(tokens), predictions
    )


def _supervised(model: Any, input_ids: list[int], labels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Summed loss, most likely tokens and right tokens at the supervised positions of one row."""
    import torch

    positions = np.flatnonzero(labels[1:] != -100)  # position t predicts token t + 1
    keep = torch.from_numpy(positions).to(model.device)
    with torch.inference_mode():
        ids = torch.tensor([input_ids], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0].float()
    expected = torch.from_numpy(labels[positions + 1].astype(np.int64)).to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits, expected, reduction="sum")
    return float(loss), logits.argmax(-1).cpu().numpy().astype(np.int32), expected.cpu().numpy().astype(np.int32)


def answer_with_transformers(model_directory: Path, requests: pa.Table, max_new_tokens: int) -> pa.Table:
    """Continue prompts greedily, one by one.

    Args:
        model_directory: Hugging Face directory, or a directory with one `.gguf` file.
        requests: Columns `row_id` and `prompt_token_ids`.
        max_new_tokens: Where a completion is cut off.

    Returns:
        Columns `row_id`, `completion`, `finish_reason` (stop or length) and `error` (all null), in request order.
    """
    import torch
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    stops = GenerationConfig.from_pretrained(model_directory).eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or [])
    completions, reasons = [], []
    with opened(model_directory) as model:
        settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=sorted(stops))
        settings.pad_token_id = min(stops, default=0)  # unused with one row, but generate warns without it
        for prompt in requests["prompt_token_ids"].to_pylist():
            ids = torch.tensor([prompt], device=model.device)
            with torch.inference_mode():
                whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
            answer = whole[0, len(prompt) :].tolist()
            text = tokenizer.decode(answer, skip_special_tokens=True)
            completions.append(text.rstrip("\ufffd"))  # engines do not emit a character whose bytes were cut off
            reasons.append("stop" if answer and answer[-1] in stops else "length")
    return pa.table(
        {
            "row_id": requests["row_id"],
            "completion": completions,
            "finish_reason": reasons,
            "error": pa.nulls(len(completions), pa.string()),
        }
    )


@contextlib.contextmanager
def opened(model_directory: Path) -> Iterator[Any]:
    """Load a model for inference and give its memory back on exit.

    A GGUF model is opened in float32: llama.cpp accumulates above bfloat16, which alone would round Q8_0 visibly.
    """
    import gc

    import torch
    from transformers import AutoModelForCausalLM

    device = "auto" if torch.cuda.is_available() else "cpu"
    gguf = gguf_file(model_directory)
    how: dict[str, Any] = {"dtype": torch.float32, "gguf_file": gguf.name} if gguf else {"dtype": "auto"}
    model = AutoModelForCausalLM.from_pretrained(model_directory, device_map=device, **how).eval()
    try:
        yield model
    finally:
        del model
        gc.collect()
        if device == "auto":
            torch.cuda.empty_cache()
