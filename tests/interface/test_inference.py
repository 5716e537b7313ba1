"""A table answered by name alone: each value from where it should come, each row once."""

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_lineage import empty_database

from llm_assets import run_inference
from llm_assets.data.sources import SourceMissing
from llm_assets.inference import batch
from llm_assets.inference.batch import OutputBusy, answer_table
from llm_assets.inference.destination import DestinationInvalid, merge_answers
from llm_assets.inference.settings import InferenceRequest
from llm_assets.interface.arguments import ArgumentsInvalid
from llm_assets.quantization.tiers import TierTooSmall
from llm_assets.registry.evidence import NotPromoted
from llm_assets.registry.versions import VariantUnknown, VersionUnknown

SMALL = {"variant": "gguf_q8_0", "threads": 1}


@pytest.fixture
def lines():
    """What a call says while it works."""
    return []


def answered(lines):
    return [line for line in lines if "to ask" in line][-1]


def test_everything_not_given_comes_from_the_registered_version(registered, questions, lines):
    done = run_inference(input_source=str(questions), model_name=registered, log=lines.append, **SMALL)
    assert (done.model_version, done.rows, done.answered_rows, done.failed_rows) == ("1", 6, 6, 0)
    from_version = {"format": "text_to_sql", "temperature": 0.0, "max_new_tokens": 7, "top_p": 1.0, "stop": [";"]}
    for name, value in from_version.items():
        assert (done.value(name), done.origin(name)) == (value, "registered version"), name
    assert (done.value("version"), done.origin("version")) == ("1", "default")
    assert (done.value("variant"), done.origin("variant")) == ("gguf_q8_0", "explicit")
    assert (done.value("threads"), done.origin("threads")) == (1, "explicit")
    assert (done.value("num_gpus"), done.origin("num_gpus")) == (0, "planner")
    for name in ("max_model_len", "max_num_seqs", "kv_cache_tokens"):
        assert done.origin(name) == "planner" and done.value(name) >= 1
    table = done.table()
    assert table["sql_prompt"].to_pylist() == pq.read_table(questions)["sql_prompt"].to_pylist()
    assert set(table["model_version"].to_pylist()) == {"1"}
    assert max(table["completion_tokens"].to_pylist()) <= 7


def test_explicit_values_win_and_are_told_as_such(registered, questions, lines):
    given = {"version": "champion", "max_new_tokens": 3, "stop": (), "temperature": 0.5, "max_num_seqs": 2}
    done = run_inference(input_source=str(questions), model_name=registered, log=lines.append, **SMALL, **given)
    assert max(done.table()["completion_tokens"].to_pylist()) == 3
    for name in given:
        assert done.origin(name) == "explicit", name
    assert (done.value("stop"), done.value("max_num_seqs"), done.origin("top_p")) == ([], 2, "registered version")


def test_a_second_call_starts_no_engine_and_doubles_no_row(registered, questions, tmp_path, lines):
    call = {
        "model_name": registered,
        "output_table": f"{tmp_path}/w.duckdb::sales.answers",
        "log": lines.append,
        **SMALL,
    }
    first = run_inference(input_source=str(questions), **call)
    assert "0 answers taken over, 6 to ask" in answered(lines)
    again = run_inference(input_source=str(questions), **call)
    assert "6 answers taken over, 0 to ask" in answered(lines)
    assert (again.answered_rows, again.rows) == (0, 6)
    assert again.table().equals(first.table())

    rows = pq.read_table(questions).to_pylist()
    rows[0]["sql_prompt"] = "another question?"
    pq.write_table(pa.Table.from_pylist(rows), questions)
    run_inference(input_source=str(questions), **call)
    assert "5 answers taken over, 1 to ask" in answered(lines)
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        counted = connection.execute("SELECT count(*), count(DISTINCT row_id) FROM sales.answers").fetchall()
    assert counted == [(7, 7)]  # six questions and the one that replaced its neighbour in the input


def test_a_data_frame_is_an_input_and_parquet_an_output(registered, questions, tmp_path, lines):
    frame = pq.read_table(questions).to_pandas()
    output = tmp_path / "answers.parquet"
    done = run_inference(input_source=frame, model_name=registered, output_table=str(output), log=lines.append, **SMALL)
    assert pq.read_table(output)["completion"].to_pylist() == done.table()["completion"].to_pylist()
    same = run_inference(input_source=pq.read_table(questions), model_name=registered, log=lines.append, **SMALL)
    assert same.table()["row_id"].to_pylist() == done.table()["row_id"].to_pylist()


def test_an_output_is_held_until_the_answers_are_in_it(registered, questions, tmp_path, lines, monkeypatch):
    def merged_alone(answers, destination):
        with pytest.raises(OutputBusy), batch._exclusive(answers.parents[1]):
            pass
        return merge_answers(answers, destination)

    monkeypatch.setattr(batch, "merge_answers", merged_alone)
    output = str(tmp_path / "answers.parquet")
    call = {"input_source": str(questions), "model_name": registered, "output_table": output}
    run_inference(**call, log=lines.append, **SMALL)
    assert pq.ParquetFile(output).metadata.num_rows == 6


def test_a_row_that_asks_nothing_fails_alone(registered, questions, lines):
    rows = [*pq.read_table(questions).to_pylist(), {"sql_context": "create table a (b integer)", "sql_prompt": ""}]
    done = run_inference(input_source=pa.Table.from_pylist(rows), model_name=registered, log=lines.append, **SMALL)
    assert (done.rows, done.failed_rows) == (7, 1)
    assert "empty_prompt" in done.table()["error"].to_pylist()[-1]


def test_the_page_tells_rows_parameters_and_first_answers(registered, questions, lines):
    done = run_inference(input_source=str(questions), model_name=registered, log=lines.append, **SMALL)
    assert "prod.sql.orders version 1: 6 rows" in repr(done)
    assert "max_new_tokens" in repr(done) and "registered version" in done._repr_html_()


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"temprature": 1}, ArgumentsInvalid, "no temprature. Did you mean temperature"),
        ({"temperature": 9}, ArgumentsInvalid, "generation.temperature: .*less than or equal to 2"),
        ({"gpu_type": "A1000"}, ArgumentsInvalid, "gpu_type 'A1000' is not a known GPU. Did you mean A100"),
        ({"num_gpus": 2, "tensor_parallel_size": 4}, ArgumentsInvalid, "num_gpus is 2 and tensor_parallel_size is 4"),
        ({"input_source": 7}, ArgumentsInvalid, "input_source is a int"),
        ({"variant": "nvfp4"}, VariantUnknown, "It holds: merged, gguf_q8_0"),
        ({"version": 9}, VersionUnknown, r"Versions: \[1\]"),
        ({"num_gpus": 2}, Exception, "2 GPU asked for; this machine has no GPU"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_row_is_read(registered, home, wrong, error, told):
    with pytest.raises(error, match=told):
        run_inference(**{"input_source": "missing.parquet", "model_name": registered, **wrong})
    assert not (home / "inference").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tracking_uri": "http://u:hunter2@mlflow"}, "tracking_uri is 'http://mlflow', but with trigger_remote=True"),
        ({"input_source": "postgresql://u:hunter2@h/db::t"}, "input_source 'postgresql://h/db::t' carries a password"),
        ({"output_table": "postgresql://h/db?password=hunter2::t"}, "output_table .* carries a password"),
    ],
)
def test_what_a_deployment_would_ignore_or_show_is_not_sent(home, wrong, told):
    call = {
        "input_source": "rows.parquet",
        "model_name": "m",
        "trigger_remote": True,
        "dagster_url": "http://127.0.0.1:9",
    }
    with pytest.raises(ArgumentsInvalid, match=told) as refused:
        run_inference(**{**call, **wrong})
    assert "hunter2" not in str(refused.value)


def answer(registry, output, generate, **named):
    request = InferenceRequest(model_name="prod.sql.orders", output_table=str(output), **named)
    home, where = output.parent / "home", registry.tracking_uri
    return answer_table(request, generate, home=home, gpus=None, log=lambda line: None, tracking_uri=where)


def test_an_output_that_cannot_take_the_answers_is_refused_before_the_engine_runs(registry, questions, tmp_path):
    def generate(tasks, generation, engine):
        pytest.fail("the engine was started")

    output = tmp_path / "orders.parquet"
    pq.write_table(pa.table({"id": [1]}), output)
    with pytest.raises(DestinationInvalid, match="holds no answers"):
        answer(registry, output, generate, input_source=str(questions))
    names = ("row_id", "model_name", "model_version", "variant")
    pq.write_table(pa.table({**{name: ["x"] for name in names}, "sql_prompt": [1]}), output)
    with pytest.raises(DestinationInvalid, match="sql_prompt is BIGINT, theirs is VARCHAR"):
        answer(registry, output, generate, input_source=str(questions))


def test_a_registry_apart_from_the_tracking_server_is_where_the_version_is_looked_up(registry, questions, tmp_path):
    (tmp_path / "empty.db").write_bytes(empty_database())
    request = InferenceRequest(model_name="prod.sql.orders", input_source=str(questions))
    where = {"tracking_uri": registry.tracking_uri, "registry_uri": f"sqlite:///{tmp_path}/empty.db"}
    with pytest.raises(VersionUnknown, match="Registered: none"):
        answer_table(request, lambda *_: None, home=tmp_path, gpus=None, log=lambda line: None, **where)


def test_the_version_in_use_needs_a_passed_gate_unless_it_is_named(registry, questions, tmp_path):
    client, tag = registry.client(), "llm_assets.gate"
    gate = client.get_model_version("prod.sql.orders", "1").tags[tag]
    client.delete_model_version_tag("prod.sql.orders", "1", tag)
    output = tmp_path / "answers.parquet"
    try:
        with pytest.raises(NotPromoted, match="name its number"):
            answer(registry, output, lambda *_: None, input_source=str(questions))
        with pytest.raises(SourceMissing):
            answer(registry, output, lambda *_: None, input_source="missing.parquet", version="1")
    finally:
        client.set_model_version_tag("prod.sql.orders", "1", tag, gate)


def test_gpus_are_checked_against_the_tier_table(registry, questions):
    from llm_assets.inference.settings import resolve
    from llm_assets.registry.versions import load_version

    version = load_version("prod.sql.orders", "1", registry.tracking_uri)
    large = {**version.metadata["architecture"], "parameters": 70 * 10**9}
    board = {"candidates": {"merged": {"bytes": 140 * 10**9}}}
    version = type(version)(
        **{**vars(version), "metadata": {**version.metadata, "architecture": large, "scoreboard": board}}
    )
    asked = {"model_name": "prod.sql.orders", "input_source": str(questions)}
    planned = resolve(InferenceRequest(**asked), version, ["NVIDIA A100-SXM4-80GB"] * 2)
    found = {parameter.name: (parameter.value, parameter.origin) for parameter in planned.parameters}
    assert found["num_gpus"] == (2, "planner")
    with pytest.raises(TierTooSmall, match=r"70.0B parameters need 147.0 GB for serving; 1 x A100"):
        resolve(InferenceRequest(**asked, gpu_type="a100_80gb", num_gpus=1), version, None)
