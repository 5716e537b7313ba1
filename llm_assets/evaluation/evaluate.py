"""The whole comparison: every candidate answers the same rows, then text, SQL and loss are scored.

All engine work goes through one `generate` call and so one worker process; finished answers and losses stay in `work`,
and a repeated call after a crash picks them up.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.engine.tasks import GenerationTask, read_answers, read_engine_report, write_requests
from llm_assets.evaluation.candidates import Candidate
from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.held_out import HeldOut
from llm_assets.evaluation.hf_generation import generate_with_transformers
from llm_assets.evaluation.loss import candidate_loss
from llm_assets.evaluation.scoreboard import ANSWER_ROWS, answer_rows, candidate_line, compared
from llm_assets.evaluation.sql_execution import Verdict, execute_answers
from llm_assets.evaluation.sql_sandbox import SqlSandbox

SCOREBOARD, ANSWERS_FILE = "scoreboard.json", "answers.parquet"
Log = Callable[[str], None]


def evaluate(
    candidates: Sequence[Candidate],
    held_out: HeldOut,
    *,
    tokenizer: Path,
    config: EvaluationConfig,
    work: Path,
    out: Path,
    generate: Callable[[Sequence[GenerationTask]], None],
    log: Log,
) -> dict[str, Any]:
    """Score all candidates and write `scoreboard.json` and `answers.parquet`.

    Args:
        candidates: At least `base` and `merged`.
        held_out: The rows; the same for every candidate.
        tokenizer: Directory of the tokenizer and template.
        config: Metrics and generation settings.
        work: Directory that survives a crash and is handed in again.
        out: Existing empty directory.
        generate: Runs the engine's tasks, in one worker process.
        log: Receives progress.

    Returns:
        The scoreboard: `rows`, `rows_digest`, `metrics`, `primary`, `generation`, `candidates`, `improvement` and
        `recovery`.
    """
    _generate_all(candidates, held_out, tokenizer=tokenizer, config=config, work=work, generate=generate, log=log)
    answers = {candidate.name: read_answers(work / candidate.name) for candidate in candidates}
    verdicts = _execute(held_out, answers, config, log) if "sql_execution" in config.metrics else {}
    rows: list[dict[str, Any]] = []
    lines: dict[str, dict[str, Any]] = {}
    for candidate in candidates:
        own = answer_rows(candidate.name, held_out, answers[candidate.name], verdicts.get(candidate.name))
        lines[candidate.name] = {**candidate_line(own, config), **_measured(candidate, held_out, work, log)}
        rows += own
    scoreboard = {
        "rows": len(held_out.row_ids),
        "rows_digest": held_out.digest,
        "metrics": list(config.metrics),
        "primary": config.primary,
        "generation": config.generation.model_dump(mode="json"),
        "candidates": lines,
        **compared(rows, config),
    }
    (out / SCOREBOARD).write_text(json.dumps(scoreboard, indent=1))
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWER_ROWS), out / ANSWERS_FILE)
    return scoreboard


def read_scoreboard(evaluation: Path) -> dict[str, Any]:
    """The scoreboard of a published evaluation."""
    return json.loads((evaluation / SCOREBOARD).read_text())


def read_answer_rows(evaluation: Path) -> list[dict[str, Any]]:
    """Rows of `answers.parquet`; columns as `ANSWER_ROWS`."""
    return pq.read_table(evaluation / ANSWERS_FILE).to_pylist()


def quality(scoreboard: Mapping[str, Any]) -> dict[str, Any]:
    """The scoreboard without what a repeated run measures differently: speed and load time."""
    timed = ("tokens_per_second", "load_seconds")
    lines = {
        name: {key: value for key, value in line.items() if key not in timed}
        for name, line in scoreboard["candidates"].items()
    }
    return {**scoreboard, "candidates": lines}


def _generate_all(
    candidates: Sequence[Candidate],
    held_out: HeldOut,
    *,
    tokenizer: Path,
    config: EvaluationConfig,
    work: Path,
    generate: Callable[[Sequence[GenerationTask]], None],
    log: Log,
) -> None:
    requests = work / "requests.parquet"
    write_requests(requests, held_out.row_ids, held_out.prompt_token_ids)
    log(f"{len(candidates)} candidates answer {len(held_out.row_ids)} held-out rows")
    generate(
        [
            GenerationTask(candidate.name, candidate.directory, candidate.engine, requests, work / candidate.name)
            for candidate in candidates
            if candidate.engine != "transformers"
        ]
    )
    for candidate in candidates:
        if candidate.engine == "transformers" and not list((work / candidate.name).glob("part-*.parquet")):
            log(f"{candidate.name} is answered with transformers: {candidate.reason}")
            output = work / candidate.name
            generate_with_transformers(
                candidate.directory, requests, output, tokenizer=tokenizer, config=config.generation, log=log
            )


def _execute(
    held_out: HeldOut, answers: Mapping[str, pa.Table], config: EvaluationConfig, log: Log
) -> dict[str, list[Verdict]]:
    texts = {}
    for name, table in answers.items():
        by_id = dict(zip(table["row_id"].to_pylist(), table["completion"].to_pylist(), strict=True))
        texts[name] = [by_id.get(row_id) or "" for row_id in held_out.row_ids]
    with SqlSandbox(config.sql) as sandbox:
        verdicts = execute_answers(held_out.sql_contexts, held_out.expected, texts, sandbox, log)
    log(f"executed {sum(map(len, texts.values()))} answers; the sandbox was started {sandbox.starts} times")
    return verdicts


def _measured(candidate: Candidate, held_out: HeldOut, work: Path, log: Log) -> dict[str, Any]:
    report = read_engine_report(work / candidate.name)
    remembered = work / f"{candidate.name}.loss.json"
    if not remembered.exists():
        remembered.write_text(json.dumps(candidate_loss(candidate.directory, held_out)))
    loss = json.loads(remembered.read_text())
    log(f"{candidate.name}: loss {loss:.4f} nats per token, {report['tokens_per_second']:.0f} completion tokens/s")
    return {
        "loss": loss,
        "engine": candidate.engine,
        "engine_reason": candidate.reason,
        "bytes": candidate.weight_bytes(),
        "tokens_per_second": float(report["tokens_per_second"]),
        "load_seconds": float(report["load_seconds"]),
    }
