import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from published_lineage import PublishedLineage

from llm_assets.engine.tasks import GenerationConfig, GenerationTask, read_answers
from llm_assets.evaluation.candidates import Candidate, WeightsMissing, list_candidates
from llm_assets.evaluation.config import EvaluationConfig
from llm_assets.evaluation.evaluate import evaluate, quality, read_answer_rows, read_scoreboard
from llm_assets.evaluation.held_out import HeldOut, read_held_out
from llm_assets.evaluation.hf_generation import generate_with_transformers
from llm_assets.quantization.hardware import Hardware, find_gpu

CONFIG = EvaluationConfig(
    metrics=("sql_execution", "exact_match", "token_f1"), generation=GenerationConfig(max_new_tokens=8), resamples=200
)
CPU = Hardware(name="cpu", device="cpu", memory_bytes=2**33)


@pytest.fixture(scope="module")
def held_out(lineage: PublishedLineage) -> HeldOut:
    return read_held_out(lineage.chat, lineage.tokenized, rows=50, seed=0, sql_context_column="sql_context")


def transformers_engine(lineage: PublishedLineage) -> Callable[[Sequence[GenerationTask]], None]:
    """The engine's place taken by transformers, so that these tests need no engine environment."""

    def generate(tasks: Sequence[GenerationTask]) -> None:
        tokenizer = lineage.tokenized / "tokenizer"
        for task in tasks:
            if not task.output.exists():
                generate_with_transformers(
                    task.model, task.requests, task.output, tokenizer=tokenizer, config=CONFIG.generation, log=print
                )

    return generate


@pytest.fixture(scope="module")
def evaluated(
    lineage: PublishedLineage, held_out: HeldOut, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    out, work = tmp_path_factory.mktemp("evaluation"), tmp_path_factory.mktemp("work")
    candidates = list_candidates(lineage.base, lineage.merged, {"gguf_q8_0": lineage.variant}, CPU)
    scoreboard = evaluate(
        candidates,
        held_out,
        tokenizer=lineage.tokenized / "tokenizer",
        config=CONFIG,
        work=work,
        out=out,
        generate=transformers_engine(lineage),
        log=print,
    )
    return scoreboard, out


def test_every_candidate_has_a_line_with_quality_behaviour_size_and_speed(evaluated: tuple[dict[str, Any], Path]):
    scoreboard, out = evaluated
    assert scoreboard == read_scoreboard(out)
    assert list(scoreboard["candidates"]) == ["base", "merged", "gguf_q8_0"]
    for line in scoreboard["candidates"].values():
        assert {"execution_accuracy", "exact_match", "token_f1", "loss", "stop_rate", "bytes"} <= line.keys()
        assert 0 <= line["length_capped_share"] <= 1
        assert line["loss"] > 0 and line["bytes"] > 0 and line["tokens_per_second"] > 0 and line["load_seconds"] > 0


def test_rows_whose_expected_sql_returns_nothing_are_reported_and_left_out(evaluated: tuple[dict[str, Any], Path]):
    scoreboard, out = evaluated
    assert scoreboard["rows"] == 6
    assert scoreboard["candidates"]["merged"]["execution_rows"] == 5
    silent = [row for row in read_answer_rows(out) if row["executes_equal"] is None]
    assert {row["execution_error"] for row in silent} == {"expected SQL returns no row"}


def test_the_same_weights_get_the_same_loss_and_no_improvement(evaluated: tuple[dict[str, Any], Path]):
    scoreboard, _ = evaluated
    base, merged = scoreboard["candidates"]["base"], scoreboard["candidates"]["merged"]
    assert base["loss"] == pytest.approx(merged["loss"])
    assert scoreboard["improvement"]["merged"] == {"value": 0.0, "low": 0.0, "high": 0.0, "rows": 5}


def test_quality_leaves_out_what_a_repeated_run_measures_differently(evaluated: tuple[dict[str, Any], Path]):
    line = quality(evaluated[0])["candidates"]["merged"]
    assert "tokens_per_second" not in line and "load_seconds" not in line and "exact_match" in line


def test_a_repeated_call_answers_nothing_twice(lineage: PublishedLineage, held_out: HeldOut, tmp_path: Path):
    candidates = [Candidate("base", lineage.base, "vllm"), Candidate("merged", lineage.merged, "transformers")]
    work = tmp_path / "work"
    outcomes = []
    for attempt in range(2):
        out = tmp_path / str(attempt)
        out.mkdir(parents=True)
        work.mkdir(exist_ok=True)
        engine = transformers_engine(lineage)
        evaluate(
            candidates,
            held_out,
            tokenizer=lineage.tokenized / "tokenizer",
            config=EvaluationConfig(generation=GenerationConfig(max_new_tokens=2), resamples=100),
            work=work,
            out=out,
            generate=engine,
            log=lambda _: None,
        )
        outcomes.append([path.stat().st_mtime_ns for path in sorted(work.rglob("part-*.parquet"))])
    assert outcomes[0] == outcomes[1]
    assert (tmp_path / "0" / "scoreboard.json").read_bytes() == (tmp_path / "1" / "scoreboard.json").read_bytes()


def test_a_variant_without_a_kernel_here_is_marked_transformers_with_the_reason(
    lineage: PublishedLineage, tmp_path: Path
):
    (tmp_path / "quantization.json").write_text(json.dumps({"scheme": "nvfp4", "engine": "vllm", "kv_cache": ""}))
    on_cpu = list_candidates(lineage.base, lineage.merged, {"nvfp4": tmp_path}, CPU)[-1]
    assert on_cpu.engine == "transformers" and "FP4" in on_cpu.reason
    on_blackwell = list_candidates(lineage.base, lineage.merged, {"nvfp4": tmp_path}, find_gpu("B200"))[-1]
    assert (on_blackwell.engine, on_blackwell.reason) == ("vllm", "")


def test_a_gguf_variant_is_answered_by_llama_cpp(lineage: PublishedLineage):
    assert list_candidates(lineage.base, lineage.merged, {"q8": lineage.variant}, CPU)[-1].engine == "llama_cpp"


def test_a_directory_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(WeightsMissing, match=r"holds no \*.safetensors or \*.gguf"):
        Candidate("merged", tmp_path, "vllm").weight_bytes()


def test_batched_answers_equal_those_of_one_row_at_a_time(lineage: PublishedLineage, held_out: HeldOut, tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llm_assets.engine.tasks import write_requests

    write_requests(tmp_path / "requests.parquet", held_out.row_ids, held_out.prompt_token_ids)
    tokenizer = lineage.tokenized / "tokenizer"
    generate_with_transformers(
        lineage.merged,
        tmp_path / "requests.parquet",
        tmp_path / "out",
        tokenizer=tokenizer,
        config=CONFIG.generation,
        log=print,
    )
    answers = {row["row_id"]: row for row in read_answers(tmp_path / "out").to_pylist()}
    model = AutoModelForCausalLM.from_pretrained(lineage.merged, dtype="auto").eval()
    decoder = AutoTokenizer.from_pretrained(tokenizer)
    assert answers.keys() == set(held_out.row_ids)
    for row_id, prompt in zip(held_out.row_ids, held_out.prompt_token_ids, strict=True):
        tokens = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert answers[row_id]["completion"] == decoder.decode(tokens, skip_special_tokens=True)
        assert answers[row_id]["finish_reason"] == ("stop" if 2 in tokens else "length")
        assert answers[row_id]["prompt_tokens"] == len(prompt)
