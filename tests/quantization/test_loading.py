"""The verdict on a variant's first answers: good ones, and each way they can be bad."""

import pyarrow as pa

from llm_assets.quantization.loading import loads

MERGED = pa.table({"row_id": ["a", "b"], "completion": ["SELECT 1;", "SELECT name;"]})


def answers(*rows):
    names = ("row_id", "completion", "finish_reason", "error")
    return pa.table(
        {name: pa.array(column, pa.string()) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    )


def test_answers_in_any_order_pass_and_report_their_agreement():
    given = answers(("b", "SELECT total;", "stop", None), ("a", "SELECT 1;", "stop", None))
    result = loads(MERGED, given, "vllm")
    assert result.passed
    assert result.numbers["agreement"] == 0.5
    assert result.numbers["common_prefix"] == (1 + len("SELECT ") / len("SELECT name;")) / 2
    assert result.numbers["opened_by_its_engine"] is True
    assert [row["variant"] for row in result.rows] == ["SELECT 1;", "SELECT total;"]


def test_a_prompt_without_answer_fails():
    result = loads(MERGED, answers(("a", "SELECT 1;", "stop", None)), "vllm")
    assert not result.passed
    assert "1 of 2 prompts have no answer, first b" in result.summary


def test_an_error_fails_with_its_text():
    given = answers(("a", "SELECT 1;", "stop", None), ("b", "", "error", "prompt too long"))
    result = loads(MERGED, given, "llama_cpp")
    assert not result.passed
    assert "b: prompt too long" in result.summary


def test_silence_fails_where_the_merged_model_speaks():
    given = answers(("a", " ", "stop", None), ("b", "SELECT name;", "stop", None))
    assert not loads(MERGED, given, "vllm").passed
    silent = pa.table({"row_id": ["a", "b"], "completion": ["", "SELECT name;"]})
    assert loads(silent, answers(("a", "", "stop", None), ("b", "SELECT name;", "stop", None)), "vllm").passed


def test_a_variant_its_engine_could_not_open_here_says_so():
    given = answers(("a", "SELECT 1;", "stop", None), ("b", "SELECT name;", "stop", None))
    result = loads(MERGED, given, "transformers", unproven="vLLM's CPU build has no FP4 kernel")
    assert result.passed
    assert result.numbers["opened_with"] == "transformers"
    assert result.numbers["opened_by_its_engine"] is False
    assert "opened with transformers because vLLM's CPU build has no FP4 kernel" in result.summary
