"""Answer requests with transformers, for candidates the engine at hand has no kernel for.

Ten times slower than the engine and honest only about quality: the scoreboard names it in its engine column. Answers
and report have the engine's own format, so nothing downstream tells them apart.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.engine.tasks import ANSWERS, ENGINE_REPORT, GenerationConfig
from llm_assets.quantization.forward import opened

BATCH_ROWS = 16


def generate_with_transformers(
    directory: Path,
    requests: Path,
    output: Path,
    *,
    tokenizer: Path,
    config: GenerationConfig,
    log: Callable[[str], None],
) -> None:
    """Write `part-0.parquet` and `engine.json` for one candidate, as the engine's worker would.

    Args:
        directory: Candidate's weights.
        requests: File made by `write_requests`.
        output: Existing or new directory.
        tokenizer: Directory of the tokenizer that decodes the answers.
        config: Generation settings.
        log: Receives a line per few batches.
    """
    import torch
    from transformers import AutoTokenizer

    started = time.perf_counter()
    decoder = AutoTokenizer.from_pretrained(tokenizer)
    rows = sorted(pq.read_table(requests).to_pylist(), key=lambda row: (len(row["prompt_token_ids"]), row["row_id"]))
    answers: list[dict[str, Any]] = []
    with opened(directory) as model:
        loaded = time.perf_counter()
        torch.manual_seed(config.seed)
        for first in range(0, len(rows), BATCH_ROWS):
            answers += _answer_batch(model, decoder, rows[first : first + BATCH_ROWS], config)
            if first // BATCH_ROWS % 5 == 0:
                log(f"transformers answered {len(answers)} of {len(rows)} rows")
    output.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(answers, schema=ANSWERS), output / "part-0.parquet")
    seconds, tokens = time.perf_counter() - loaded, sum(answer["completion_tokens"] for answer in answers)
    report = {"engine": "transformers", "load_seconds": loaded - started, "rows": len(rows), "seconds": seconds}
    (output / ENGINE_REPORT).write_text(json.dumps({**report, "tokens_per_second": tokens / seconds}))


def _answer_batch(
    model: Any, decoder: Any, rows: Sequence[dict[str, Any]], config: GenerationConfig
) -> list[dict[str, Any]]:
    import torch

    began = time.perf_counter()
    width, pad = max(len(row["prompt_token_ids"]) for row in rows), decoder.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(r["prompt_token_ids"])) + r["prompt_token_ids"] for r in rows])
    mask = torch.tensor([[0] * (width - len(r["prompt_token_ids"])) + [1] * len(r["prompt_token_ids"]) for r in rows])
    end = _end_tokens(model, decoder)
    sampling = {"temperature": config.temperature, "top_p": config.top_p} if config.temperature else {}
    with torch.no_grad():
        tokens = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=config.max_new_tokens,
            do_sample=config.temperature > 0,
            eos_token_id=end,
            pad_token_id=pad,
            **sampling,
            **({"stop_strings": list(config.stop), "tokenizer": decoder} if config.stop else {}),
        )[:, width:].tolist()
    seconds = time.perf_counter() - began
    answers = [_answer(row, t, set(end), decoder, config.stop) for row, t in zip(rows, tokens, strict=True)]
    return [{**answer, "error": None, "latency_seconds": seconds} for answer in answers]


def _end_tokens(model: Any, decoder: Any) -> list[int]:
    configured = model.generation_config.eos_token_id
    many = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*many, decoder.eos_token_id] if token is not None})


def _answer(
    row: dict[str, Any], completion: list[int], end: set[int], decoder: Any, stops: Sequence[str]
) -> dict[str, Any]:
    stop_at = next((place for place, token in enumerate(completion) if token in end), None)
    text = decoder.decode(completion[:stop_at], skip_special_tokens=True)
    cut = min((text.find(stop) for stop in stops if stop in text), default=None)
    stopped = stop_at is not None or cut is not None
    return {
        "row_id": row["row_id"],
        "completion": text[:cut],
        "finish_reason": "stop" if stopped else "length",
        "prompt_tokens": len(row["prompt_token_ids"]),
        "completion_tokens": len(completion) if stop_at is None else stop_at + 1,
    }
