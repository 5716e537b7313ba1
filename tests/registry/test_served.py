"""A version on a tracking server: stored through it, asked over HTTP, and used by a process that has its name.

One tracking server and one model server serve the whole file.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uvicorn
from mlflow_processes import free_port, model_server, tracking_server
from published_lineage import PublishedLineage, empty_database, write_evaluation

from llm_assets import get_model_info
from llm_assets.core import CheckResult
from llm_assets.engine.job import engine_python
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests
from llm_assets.evaluation.held_out import read_held_out
from llm_assets.evaluation.hf_generation import generate_with_transformers
from llm_assets.evaluation.scoreboard import ANSWER_ROWS
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.evidence import Evidence, write_evidence
from llm_assets.registry.promote import promote
from llm_assets.registry.prompts import publish_prompt, write_prompt_record
from llm_assets.registry.register import register_version
from llm_assets.registry.registration import Registered
from llm_assets.registry.round_trip import registry_round_trip
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import load_version

QUESTION = "how many orders are there?"
CHAT = [{"role": "user", "content": QUESTION}]
LONGER = [{"role": "system", "content": "Answer in SQL."}, *CHAT]
SAMPLED = {"temperature": 0.7, "max_tokens": 4, "stop": [";"], "candidate_count": 2}


@dataclass(frozen=True)
class Served:
    """A version on a server."""

    store: TrackingStore
    sources: VersionSources
    registered: Registered
    log: tuple[str, ...]


@pytest.fixture(scope="module")
def served(lineage: PublishedLineage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    (home / "mlflow.db").write_bytes(empty_database())
    with tracking_server(home) as uri, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_ASSETS_HOME", str(home / "client"))
        store = TrackingStore(uri, str(home / "unused"))
        prompt = publish_prompt("ask_orders", "{{question}}", store, alias="production")
        write_prompt_record(lineage.chat, [prompt])
        sources = VersionSources(
            model="orders",
            merged=lineage.merged,
            variants={"gguf_q8_0": lineage.variant},
            adapter=lineage.adapter,
            tokenized=lineage.tokenized,
            evaluation=evaluated(lineage, home),
            chat=lineage.chat,
        )
        told: list[str] = []
        registered = register_version("orders", sources, store, {}, told.append)
        write_evidence(store, "orders", "1", Evidence.of(CheckResult(True, "the first"), None, [], {}))
        promote("orders", "1", "champion", store)
        yield Served(store, sources, registered, tuple(told))
        (lineage.chat / "prompts.json").unlink()


def evaluated(lineage: PublishedLineage, home: Path) -> Path:
    """An evaluation with the answers the merged model really gives to the held-out rows."""
    generation = GenerationConfig(max_new_tokens=7, stop=(";",))
    held_out = read_held_out(lineage.chat, lineage.tokenized, rows=10, seed=0)
    write_requests(home / "requests.parquet", held_out.row_ids, held_out.prompt_token_ids)
    generate_with_transformers(
        lineage.merged,
        home / "requests.parquet",
        home / "answers",
        tokenizer=lineage.tokenized / "tokenizer",
        config=generation,
        log=lambda _: None,
    )
    given = {row["row_id"]: row["completion"] for row in read_answers(home / "answers").to_pylist()}
    rows = [
        {"candidate": "merged", "row_id": row_id, "prompt": prompt, "answer": given[row_id], "exact_match": 0.0}
        for row_id, prompt in zip(held_out.row_ids, held_out.prompts, strict=True)
    ]
    evaluation = write_evaluation(home / "evaluation", [0] * len(rows))
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWER_ROWS), evaluation / "answers.parquet")
    return evaluation


@pytest.fixture(scope="module")
def invocations(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("model_server")
    with model_server(served.store.tracking_uri, "models:/orders@champion", home) as url:
        yield url


def ask(url: str, payload: Any) -> tuple[int, Any]:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


# --- stored through a server -----------------------------------------------------------------------------------------


def test_every_byte_goes_through_the_server_once_and_comes_back(served: Served):
    loaded = load_version("orders", "champion", served.store.tracking_uri)
    sizes = [p.stat().st_size for d in served.sources.placed().values() for p in d.rglob("*") if p.is_file()]
    assert served.registered.copied_bytes == sum(sizes)
    verdict = registry_round_trip(served.sources, loaded)
    assert verdict.passed, verdict.rows
    assert load_version("orders", "1", served.store.tracking_uri).directory == loaded.directory  # downloaded once


def test_the_prompt_it_was_trained_with_is_attached(served: Served):
    client = served.store.client()
    model = client.get_logged_model(served.registered.model_id)
    (linked,) = json.loads(model.tags["mlflow.linkedPrompts"])
    assert (linked["name"], linked["version"]) == ("ask_orders", "1")
    metadata = load_version("orders", "1", served.store.tracking_uri).metadata
    assert [prompt["uri"] for prompt in metadata["prompts"]] == ["prompts:/ask_orders/1"]
    assert json.loads(client.get_model_version("orders", "1").tags["llm_assets.prompts"]) == ["prompts:/ask_orders/1"]


# --- a process that knows the registry and a name --------------------------------------------------------------------

CLEAN_PROCESS = """
import json, sys
import mlflow, pyarrow.parquet as pq
version = "models:/orders@champion"
evaluation = mlflow.artifacts.download_artifacts(version + "/artifacts/evaluation")
rows = pq.read_table(evaluation + "/answers.parquet").to_pylist()
answers = mlflow.pyfunc.load_model(version).predict({"prompt": [row["prompt"] for row in rows]})
assert "llm_assets" not in sys.modules
print(json.dumps([[row["answer"] for row in rows], answers]))
"""


def test_a_clean_process_with_the_registry_and_a_name_gives_the_evaluated_answers(served: Served, tmp_path: Path):
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"MLFLOW_TRACKING_URI": served.store.tracking_uri, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CLEAN_PROCESS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    evaluated, answered = json.loads(done.stdout.splitlines()[-1])
    assert len(evaluated) == 6 and answered == evaluated


def test_a_name_on_a_server_is_told(served: Served):
    info = get_model_info("orders", tracking_uri=served.store.tracking_uri)
    assert (info.version, info.variants, info.generation["max_new_tokens"]) == ("1", ("merged", "gguf_q8_0"), 7)
    assert "prompts:/ask_orders/1" in repr(info)


ASKED_BY_NAME = """
import json, sys
from llm_assets import run_inference
asked = {"input_source": sys.argv[1], "format": {"type": "openai_messages"}, "threads": 1, "log": lambda line: None}
done = run_inference(model_name="orders", variant="gguf_q8_0", **asked)
print(json.dumps(done.table()["completion"].to_pylist()))
"""


def test_a_quantized_variant_answers_by_name_what_it_was_evaluated_with(
    served: Served, lineage: PublishedLineage, tmp_path: Path
):
    held_out = read_held_out(lineage.chat, lineage.tokenized, rows=10, seed=0)
    write_requests(tmp_path / "requests.parquet", held_out.row_ids, held_out.prompt_token_ids)
    task = GenerationTask("gguf", lineage.variant, "llama_cpp", tmp_path / "requests.parquet", tmp_path / "answers")
    run_tasks(None, [task], GenerationConfig(max_new_tokens=7, stop=(";",)), EngineConfig(threads=1), lambda _: None)
    evaluated = {row["row_id"]: row["completion"] for row in read_answers(tmp_path / "answers").to_pylist()}
    test_rows = lineage.chat / "test.parquet"
    engine = str(engine_python())
    done = subprocess.run(
        [sys.executable, "-c", ASKED_BY_NAME, str(test_rows)],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MLFLOW_TRACKING_URI": served.store.tracking_uri,
            "LLM_ASSETS_ENGINE_PYTHON": engine,
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answered = json.loads(done.stdout.splitlines()[-1])
    assert answered == [evaluated[row_id] for row_id in pq.read_table(test_rows)["row_id"].to_pylist()]
    assert any(answered)


# --- over HTTP -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        {"dataframe_split": {"columns": ["prompt"], "data": [[QUESTION], ["list every customer"]]}},
        {"dataframe_records": [{"prompt": QUESTION}, {"prompt": "list every customer"}]},
        {"instances": [QUESTION, "list every customer"]},
        {"inputs": [QUESTION, "list every customer"]},
        {"inputs": {"prompt": [QUESTION, "list every customer"]}},
    ],
    ids=lambda form: next(iter(form)),
)
def test_each_payload_form_is_answered_with_as_many_candidates_as_asked_for(invocations: str, form: dict[str, Any]):
    status, sampled = ask(invocations, {**form, "params": SAMPLED})
    assert status == 200
    assert [len(candidates) for candidates in sampled["predictions"]] == [2, 2]
    assert sampled == ask(invocations, {**form, "params": SAMPLED})[1]  # seeded
    status, greedy = ask(invocations, form)
    assert status == 200 and all(isinstance(text, str) for text in greedy["predictions"])


def test_parameters_change_the_answer(invocations: str):
    (short,) = ask(invocations, {"instances": [QUESTION], "params": {"max_tokens": 2, "stop": []}})[1]["predictions"]
    (full,) = ask(invocations, {"instances": [QUESTION], "params": {"max_tokens": 12, "stop": []}})[1]["predictions"]
    assert full.startswith(short) and len(full) > len(short)
    (stopped,) = ask(invocations, {"instances": [QUESTION], "params": {"stop": [full[:1]]}})[1]["predictions"]
    assert stopped == ""
    hot, other = (
        ask(invocations, {"instances": [QUESTION], "params": {"temperature": 2.0, "seed": seed}}) for seed in (0, 1)
    )
    assert hot != other


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"not json", "JSON"),
        ({}, "exactly one of the input fields"),
        ({"instances": [QUESTION], "inputs": [QUESTION]}, "exactly one of the input fields"),
        ({"dataframe_records": [{"question": QUESTION}]}, "missing inputs ['prompt']"),
        ({"dataframe_records": [{"prompt": 5}]}, "prompt is 5. Give a text"),
        ({"dataframe_records": [{"prompt": ""}]}, "prompt is ''. Give a text"),
        ({"instances": [QUESTION * 60]}, "the model's context has 512. Shorten"),
        ({"instances": ['[{"role": broken']}, "is not JSON"),
        ({"instances": [QUESTION], "params": {"temperature": 3.0}}, "params.temperature is 3.0. temperature is 0 to 2"),
        ({"instances": [QUESTION], "params": {"max_tokens": 0}}, "params.max_tokens is 0."),
        ({"instances": [QUESTION], "params": {"candidate_count": 99}}, "candidate_count 1 to 16"),
        ({"instances": [QUESTION], "params": {"stop": [""]}}, "params.stop is ['']"),
        ({"instances": [QUESTION], "params": {"stop": ";"}}, "Value must be a 1D array"),
    ],
)
def test_a_bad_payload_gets_400_and_a_message_without_a_traceback(invocations: str, payload: Any, says: str):
    status, answer = ask(invocations, payload)
    assert status == 400 and says in answer["message"]
    assert "Traceback" not in json.dumps(answer)


# --- the other shapes of a served version, loaded in this process ----------------------------------------------------


def loaded_as(served: Served, name: str, **shape: Any) -> Any:
    import mlflow

    sources = replace(served.sources, served=replace(served.sources.served, **shape))
    register_version(name, sources, served.store, {}, lambda _: None)
    served.store.client()
    return mlflow.pyfunc.load_model(f"models:/{name}/1")


@pytest.fixture(scope="module")
def chat_invocations(served: Served) -> Iterator[str]:
    """MLflow's model server with a chat version, in a thread of this process."""
    from mlflow.pyfunc.scoring_server import init

    chat = loaded_as(served, "orders_chat_served", task="llm/v1/chat", input_columns={"messages": "messages"})
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(init(chat), host="127.0.0.1", port=port, log_level="error"))
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}/invocations"
    server.should_exit = True
    thread.join()


def test_a_chat_version_takes_messages_and_gives_chat_completions(served: Served):
    chat = loaded_as(served, "orders_chat", task="llm/v1/chat", input_columns={"messages": "messages"})
    messages = [{"role": "user", "content": QUESTION}]
    (completion,) = chat.predict([{"messages": messages}], params={"max_tokens": 3, "candidate_count": 2})
    assert completion["object"] == "chat.completion" and completion["model"] == "orders_chat"
    assert [choice["finish_reason"] for choice in completion["choices"]] == ["length", "length"]
    assert completion["usage"]["completion_tokens"] == 6
    assert chat.metadata.metadata["task"] == "llm/v1/chat"


@pytest.mark.parametrize(
    ("form", "answers"),
    [
        ({"dataframe_split": {"columns": ["messages"], "data": [[CHAT], [LONGER]]}}, 2),
        ({"dataframe_records": [{"messages": CHAT}, {"messages": LONGER}]}, 2),
        ({"instances": [CHAT, LONGER]}, 2),
        ({"instances": [{"messages": LONGER}, {"messages": LONGER}]}, 2),
        ({"inputs": [{"messages": CHAT}, {"messages": LONGER}]}, 2),
        ({"inputs": {"messages": [CHAT, LONGER]}}, 2),
        ({"inputs": {"messages": LONGER}}, 1),
    ],
    ids=lambda form: next(iter(form)) if isinstance(form, dict) else "",
)
def test_a_chat_version_answers_each_payload_form(chat_invocations: str, form: dict[str, Any], answers: int):
    status, told = ask(chat_invocations, {**form, "params": {**SAMPLED, "candidate_count": 1}})
    assert status == 200, told
    assert [completion["object"] for completion in told["predictions"]] == ["chat.completion"] * answers
    prompts = [completion["usage"]["prompt_tokens"] for completion in told["predictions"]]
    assert len(set(prompts)) == answers or form == {"instances": [{"messages": LONGER}] * 2}


def test_messages_that_are_none_get_400_and_what_to_send(chat_invocations: str):
    for wrong in ([{"role": "user"}], ["text"], [{"role": "user", "content": 5}], "text"):
        status, told = ask(chat_invocations, {"dataframe_records": [{"messages": wrong}]})
        assert status == 400 and "Give a list such as" in told["message"], told


def test_a_version_with_columns_is_asked_by_them_and_answers_in_columns(served: Served):
    asked = loaded_as(
        served,
        "orders_columns",
        input_columns={"sql_context": "string", "sql_prompt": "string"},
        output_columns={"sql": "string", "finish_reason": "string", "prompt_tokens": "long"},
        row_format={"type": "text_to_sql"},
    )
    row = {"sql_context": "create table orders (id integer)", "sql_prompt": "{{sql_context}}"}
    (answer,) = asked.predict([row], params={"max_tokens": 3})
    assert set(answer) == {"sql", "finish_reason", "prompt_tokens"} and answer["finish_reason"] == "length"
    model = asked.unwrap_python_model()
    (turn,) = model._conversations({name: pa.array([value]).to_pandas() for name, value in row.items()})[0]
    assert turn["content"] == "create table orders (id integer)\n\n{{sql_context}}"  # a value is never a template
