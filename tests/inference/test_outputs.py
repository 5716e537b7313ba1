"""Joining answers to rows, and taking over those that still hold."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.data.formats import TextToSQLFormat
from llm_assets.data.rendering import Renderer
from llm_assets.engine.tasks import ANSWERS, GenerationConfig
from llm_assets.inference.config import InferenceConfig
from llm_assets.inference.inputs import read_partition
from llm_assets.inference.outputs import ModelInUse, finish_partition, prepare_partition, prompt_hash, read_run
from llm_assets.inference.usage import token_usage

MODEL = ModelInUse("text2sql", "3", "m-1", "merged", GenerationConfig(max_new_tokens=8))


def questions(count, **changed):
    rows = [{"sql_context": "create table orders (id integer)", "sql_prompt": f"order {n}?"} for n in range(count)]
    return [{**row, **changed.get(f"row_{n}", {})} for n, row in enumerate(rows)]


@pytest.fixture
def partition(tmp_path, tiny_base):
    """Write rows and answer them the way the engine would: one function per step of the asset."""
    renderer = Renderer.from_directory(tiny_base)
    counter = iter(range(100))

    def run(rows, model=MODEL, previous=None, lose=()):
        home = tmp_path / f"run_{next(counter)}"
        inputs, answers, out = home / "inputs", home / "answers", home / "out"
        for directory in (inputs, answers, out):
            directory.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), home / "p.parquet")
        config = InferenceConfig(inputs=f"{home}/{{partition}}.parquet", partitions={"type": "static", "keys": ["p"]})
        read_partition("p", config, TextToSQLFormat(), inputs, lambda _: None)
        requests = home / "requests.parquet"
        prepared = prepare_partition("p", inputs, renderer, model, previous=previous, requests=requests)
        asked = pq.read_table(requests)["row_id"].to_pylist() if requests.exists() else []
        record(answers, [row_id for row_id in asked if row_id not in lose])
        return asked, out, finish_partition(prepared, model, answers, out)

    return run


def record(answers, row_ids):
    rows = [
        {"row_id": row_id, "completion": f"SELECT {row_id};", "finish_reason": "stop", "prompt_tokens": 10}
        | {"completion_tokens": 4, "latency_seconds": 0.25}
        for row_id in row_ids
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWERS), answers / "part-00000.parquet")
    (answers / "engine.json").write_text('{"seconds": %s}' % (0.5 * len(row_ids)))


def table(out):
    return pq.read_table(out / "rows.parquet")


def test_answers_stand_beside_their_rows_in_the_order_of_the_inputs(partition):
    _, out, usage = partition(questions(5))
    rows = table(out)
    assert [text.split()[1] for text in rows["sql_prompt"].to_pylist()] == [f"{n}?" for n in range(5)]
    assert rows["completion"].to_pylist() == [f"SELECT {row_id};" for row_id in rows["row_id"].to_pylist()]
    assert set(rows["model_version"].to_pylist()) == {"3"}
    assert rows.column_names == [
        *("sql_context", "sql_prompt", "row_id", "prompt_hash", "completion", "finish_reason", "prompt_tokens"),
        *("completion_tokens", "model_name", "model_version", "variant", "error", "latency_seconds"),
    ]
    assert (usage["answered_rows"], usage["kept_rows"], usage["tokens_per_second"]) == (5, 0, 20 / 2.5)


def test_only_changed_rows_are_asked_again(partition):
    _, first, _ = partition(questions(5))
    asked, second, usage = partition(questions(5, row_2={"sql_prompt": "another question?"}), previous=first)
    assert len(asked) == 1
    assert (usage["answered_rows"], usage["kept_rows"]) == (1, 4)
    assert table(second)["row_id"].to_pylist()[2] == asked[0]
    assert usage["seconds"] == pytest.approx(2.5)


def test_an_unchanged_partition_asks_nothing_and_keeps_its_bytes(partition):
    _, first, _ = partition(questions(5))
    asked, second, _ = partition(questions(5), previous=first)
    assert asked == []
    for name in ("rows.parquet", "run.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize(
    "model",
    [
        ModelInUse("text2sql", "4", "m-2", "merged", MODEL.generation),
        ModelInUse("text2sql", "3", "m-9", "merged", MODEL.generation),
        ModelInUse("text2sql", "3", "m-1", "w4a16", MODEL.generation),
        ModelInUse("text2sql", "3", "m-1", "merged", GenerationConfig(max_new_tokens=9)),
    ],
    ids=["version", "registry", "variant", "sampling"],
)
def test_another_model_or_sampling_asks_everything_again(partition, model):
    _, first, _ = partition(questions(5))
    asked, _, _ = partition(questions(5), model=model, previous=first)
    assert len(asked) == 5


def test_a_row_that_cannot_be_asked_comes_out_with_its_reason(partition):
    asked, out, _ = partition(questions(3, row_1={"sql_context": "", "sql_prompt": " "}))
    assert len(asked) == 2
    row = table(out).to_pylist()[1]
    assert (row["finish_reason"], row["error"]) == ("error", "empty_prompt: column sql_context, sql_prompt is empty")
    assert row["prompt_hash"] is None


def test_failed_rows_are_asked_again(partition):
    _, first, _ = partition(questions(3))
    rows = table(first)
    errors = pa.array([None, "out of memory", None], pa.string())
    pq.write_table(rows.set_column(rows.schema.get_field_index("error"), "error", errors), first / "rows.parquet")
    asked, _, _ = partition(questions(3), previous=first)
    assert asked == [rows["row_id"].to_pylist()[1]]


def test_a_row_the_engine_lost_is_missing_from_the_table(partition):
    asked, _, _ = partition(questions(3))
    _, out, _ = partition(questions(3), lose=asked[:1])
    assert table(out)["row_id"].to_pylist() == asked[1:]


def test_an_input_column_named_like_an_answer_is_kept_apart(partition):
    _, out, _ = partition([{**row, "completion": "expected"} for row in questions(2)])
    rows = table(out)
    assert rows["input_completion"].to_pylist() == ["expected"] * 2
    assert rows["completion"].to_pylist()[0].startswith("SELECT")


def test_the_hash_follows_the_token_ids():
    assert prompt_hash([1, 2]) == prompt_hash([1, 2]) != prompt_hash([2, 1])
    assert prompt_hash([258]) != prompt_hash([2, 1])


def test_usage_adds_up_and_prices_engine_time(partition):
    _, first, _ = partition(questions(5))
    _, second, _ = partition(questions(2))
    usage = token_usage({"a": first, "b": second}, cost_per_hour_usd=3.6).to_pylist()
    assert [row["partition"] for row in usage] == ["a", "b"]
    assert usage[0] == {
        "partition": "a",
        "rows": 5,
        "prompt_tokens": 50,
        "completion_tokens": 20,
        "tokens_per_second": 8.0,
        "cost_usd": pytest.approx(0.0025),
    }
    assert read_run(second)["seconds"] == 1.0
