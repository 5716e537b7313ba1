"""What vLLM and llama.cpp answer through the worker; all vLLM tests share one process."""

import subprocess

import pytest

from llm_assets.engine.architecture import ModelUnreadable
from llm_assets.engine.job import PROJECT_ROOT, EngineEnvironmentMissing, engine_python
from llm_assets.engine.local import WorkerFailed, run_tasks
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests

TOO_LONG, EMPTY, FOREIGN = "too_long", "empty", "foreign_token"


@pytest.mark.parametrize("task", ["first", "gguf"])
def test_every_row_has_one_answer(engine_run, task):
    answers = engine_run.answers(task)
    assert answers.keys() == engine_run.prompts.keys()
    for row_id, prompt in engine_run.prompts.items():
        assert answers[row_id]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize("task", ["first", "gguf"])
def test_rows_no_engine_can_serve_carry_a_reason_and_sink_nothing(engine_run, task):
    answers = engine_run.answers(task)
    for row_id, reason in ((TOO_LONG, "context of 512"), (EMPTY, "empty"), (FOREIGN, "oken")):
        assert answers[row_id]["finish_reason"] == "error"
        assert reason in answers[row_id]["error"]
        assert answers[row_id]["completion"] == ""
    served = [row for row_id, row in answers.items() if row_id not in (TOO_LONG, EMPTY, FOREIGN)]
    assert {row["error"] for row in served} == {None}
    assert {row["finish_reason"] for row in served} <= {"stop", "length"}
    assert all(1 <= row["completion_tokens"] <= 12 and row["latency_seconds"] > 0 for row in served)


def test_consecutive_tasks_on_one_model_share_an_engine(engine_run):
    assert [engine_run.report(task)["engine_start"] for task in ("first", "second", "gguf")] == [1, 1, 2]
    assert sum(line.startswith("Starting") for line in engine_run.lines) == 2


def test_sampled_rows_repeat_because_each_has_its_own_seed(engine_run):
    first, second = engine_run.answers("first"), engine_run.answers("second")
    same = [first[row]["completion"] == second[row]["completion"] for row in first]
    assert sum(same) >= 0.9 * len(same)  # batches differ in size, and with them the last bit of a logit
    assert len({row["completion"] for row in first.values()}) > 0.7 * len(first)


@pytest.mark.parametrize("task", ["first", "gguf"])
def test_a_shared_prefix_is_computed_once(engine_run, task):
    assert engine_run.report(task)["cached_prompt_tokens"] > 30 * 64 * 0.5


def test_the_report_says_what_ran_and_how_fast(engine_run):
    report = engine_run.report("first")
    assert (report["engine"], report["device"], report["rows"]) == ("vllm", "cpu", len(engine_run.prompts))
    assert report["load_seconds"] > 0
    assert report["tokens_per_second"] == pytest.approx(report["completion_tokens"] / report["seconds"])


def test_both_engines_continue_the_same_ids_alike(tiny_base, tiny_gguf, engine_run, tmp_path):
    # Greedy f16 against sampled bf16 cannot be compared text by text; one forced token can.
    prompt = {"row": engine_run.prompts["row_0"]}
    write_requests(tmp_path / "requests.parquet", list(prompt), list(prompt.values()))
    task = GenerationTask("greedy", tiny_gguf, "llama_cpp", tmp_path / "requests.parquet", tmp_path / "answers")
    run_tasks(None, [task], GenerationConfig(max_new_tokens=1), EngineConfig(threads=1), lambda _: None)
    (answer,) = read_answers(task.output).to_pylist()
    assert answer["completion"] == _next_text(tiny_base, prompt["row"])


def test_a_damaged_model_is_refused_before_the_worker_starts(tiny_gguf, tmp_path):
    (tmp_path / "broken.gguf").write_bytes((tiny_gguf / "gguf_f16.gguf").read_bytes()[:-4096])
    write_requests(tmp_path / "requests.parquet", ["a"], [[5, 6]])
    task = GenerationTask("broken", tmp_path, "llama_cpp", tmp_path / "requests.parquet", tmp_path / "answers")
    with pytest.raises(ModelUnreadable, match="no whole GGUF file"):
        run_tasks(None, [task], GenerationConfig(), EngineConfig(), lambda _: None)


def test_a_worker_that_fails_shows_its_last_lines(tiny_gguf, tmp_path):
    write_requests(tmp_path / "requests.parquet", ["a"], [[5, 6]])
    task = GenerationTask("unwritable", tiny_gguf, "llama_cpp", tmp_path / "requests.parquet", tmp_path / "answers")
    task.output.mkdir()
    (task.output / "part-00000.parquet").write_text("no answers")
    with pytest.raises(WorkerFailed, match=r"exit code 1(.|\n)*Parquet magic bytes not found"):
        run_tasks(None, [task], GenerationConfig(), EngineConfig(threads=1), lambda _: None)


def test_a_missing_engine_environment_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_ASSETS_ENGINE_PYTHON", str(tmp_path / "python"))
    with pytest.raises(EngineEnvironmentMissing, match="make engine-env"):
        engine_python()


def test_the_worker_imports_nothing_of_the_project():
    code = (
        "import llm_assets.workers.generate, sys; ours = [m for m in sys.modules if m.startswith('llm_assets')]; "
        "print([m for m in ours if '.workers' not in m], 'vllm' in sys.modules)"
    )
    answer = subprocess.run([engine_python(), "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "['llm_assets'] False"


def _next_text(model, token_ids):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([token_ids])).logits
    return AutoTokenizer.from_pretrained(model).decode([int(logits[0, -1].argmax())])
