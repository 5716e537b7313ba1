"""The files that cross the process boundary."""

import pytest
from pydantic import ValidationError

from llm_assets.engine.tasks import (
    AnswersMissing,
    GenerationConfig,
    RequestsInvalid,
    engine_for,
    read_answers,
    read_engine_report,
    write_requests,
)


def test_a_repeated_row_id_is_refused_by_name(tmp_path):
    with pytest.raises(RequestsInvalid, match="'b' occurs twice"):
        write_requests(tmp_path / "requests.parquet", ["a", "b", "b"], [[1], [2], [3]])


def test_ids_and_prompts_of_different_number_are_refused(tmp_path):
    with pytest.raises(RequestsInvalid, match="2 row ids for 1 prompts"):
        write_requests(tmp_path / "requests.parquet", ["a", "b"], [[1]])


def test_an_unanswered_task_says_what_to_run(tmp_path):
    with pytest.raises(AnswersMissing, match=r"Worker\.generate"):
        read_answers(tmp_path)
    with pytest.raises(AnswersMissing, match=r"engine\.json"):
        read_engine_report(tmp_path)


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ValidationError, match="would end every completion"):
        GenerationConfig(stop=("", ";"))


def test_the_engine_of_a_directory_is_told_by_its_files(tiny_base, tiny_gguf):
    assert engine_for(tiny_base) == "vllm"
    assert engine_for(tiny_gguf) == "llama_cpp"
