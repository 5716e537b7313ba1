import dataclasses
import json
import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from published_lineage import PublishedLineage, write_evaluation

from llm_assets.registry import placement
from llm_assets.registry.asking import Served
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.prompts import publish_prompt
from llm_assets.registry.register import register_version, write_record
from llm_assets.registry.registration import NameTaken, Registered, Registration, owner
from llm_assets.registry.round_trip import registry_round_trip
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import load_version


def register(store: TrackingStore, sources: VersionSources, name: str = "orders") -> Registered:
    return register_version(name, sources, store, {"dagster.run_id": "r1"}, lambda _: None)


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_version_holds_weights_variants_evaluation_card_and_code(store: TrackingStore, sources: VersionSources):
    registered = register(store, sources)
    assert (registered.version, registered.created, registered.uri) == ("1", True, "models:/orders/1")
    loaded = load_version("orders", "1", store.tracking_uri)
    names = {path.relative_to(loaded.directory).as_posix() for path in files_of(loaded.directory)}
    assert {
        "MLmodel",
        "llm_pyfunc.py",
        "requirements.txt",
        "model_card.md",
        "artifacts/model/model.safetensors",
        "artifacts/model/chat_template.jinja",
        "artifacts/quantized/gguf_q8_0/quantization.json",
        "artifacts/evaluation/answers.parquet",
    } <= names


def test_weights_on_one_file_system_are_not_stored_twice(store: TrackingStore, sources: VersionSources):
    registered = register(store, sources)
    stored = load_version("orders", "1", store.tracking_uri).model_directory / "model.safetensors"
    assert registered.copied_bytes == 0
    assert stored.samefile(sources.merged / "model.safetensors")


def test_across_file_systems_every_byte_is_stored_once(
    store: TrackingStore, sources: VersionSources, monkeypatch: pytest.MonkeyPatch
):
    def other_file_system(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(placement.os, "link", other_file_system)
    registered = register(store, sources)
    assert registered.copied_bytes == sum(
        path.stat().st_size for directory in sources.placed().values() for path in files_of(directory)
    )


def test_the_same_artifacts_are_registered_once(store: TrackingStore, sources: VersionSources):
    first, again = register(store, sources), register(store, sources)
    assert (again.version, again.model_id, again.created) == (first.version, first.model_id, False)
    assert len(store.client().search_model_versions("name = 'orders'")) == 1


def test_an_evaluation_repeated_at_another_speed_makes_no_new_version_and_still_makes_the_round_trip(
    store: TrackingStore, sources: VersionSources, tmp_path: Path
):
    register(store, sources)
    slower = write_evaluation(tmp_path / "again", [1] * 18 + [0] * 2, tokens_per_second=3.0)
    again = dataclasses.replace(sources, evaluation=slower)
    registered = register(store, again)
    assert not registered.created
    verdict = registry_round_trip(again, load_version("orders", registered.version, store.tracking_uri))
    assert verdict.passed, verdict.rows


def test_other_answers_make_a_new_version(store: TrackingStore, sources: VersionSources, tmp_path: Path):
    register(store, sources)
    better = write_evaluation(tmp_path / "better", [1] * 20)
    assert register(store, dataclasses.replace(sources, evaluation=better)).version == "2"


def test_a_failed_registration_leaves_no_version_and_the_next_one_is_whole(
    store: TrackingStore, sources: VersionSources, monkeypatch: pytest.MonkeyPatch
):
    def full_disk(self: Any, metadata: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("llm_assets.registry.logged_model.LoggedModelDraft._record", full_disk)
        with pytest.raises(OSError, match="No space"):
            register(store, sources)
    assert store.client().search_registered_models() == []
    registered = register(store, sources)
    assert registered.version == "1"
    experiment = store.experiment_id(store.client(), "orders")
    models = store.client().search_logged_models([experiment])
    assert [(model.model_id, model.status.name) for model in models] == [(registered.model_id, "READY")]
    assert len(list(Path(store.artifact_root).glob("orders/models/*/artifacts/MLmodel"))) == 1


def die_between_model_and_version(store: TrackingStore, sources: VersionSources) -> None:
    import llm_assets.registry.registration as module

    module.Registration.create_version = lambda *_, **__: os._exit(9)  # type: ignore[method-assign]
    register(store, sources)


def test_a_process_killed_before_the_version_existed_leaves_its_model_for_the_next(
    store: TrackingStore, sources: VersionSources
):
    child = multiprocessing.get_context("fork").Process(target=die_between_model_and_version, args=(store, sources))
    child.start()
    child.join()
    assert child.exitcode == 9
    client = store.client()
    assert client.search_registered_models() == []
    (left,) = client.search_logged_models([store.experiment_id(client, "orders")])
    registered = register(store, sources)
    assert (registered.version, registered.model_id) == ("1", left.model_id)
    assert client.get_run(registered.run_id).info.status == "FINISHED"


def die_while_storing(store: TrackingStore, sources: VersionSources) -> None:
    from llm_assets.registry.logged_model import LoggedModelDraft

    LoggedModelDraft._record = lambda *_: os._exit(9)  # type: ignore[method-assign]
    register(store, sources)


def test_a_process_killed_while_storing_leaves_nothing_and_the_next_one_is_whole(
    store: TrackingStore, sources: VersionSources
):
    child = multiprocessing.get_context("fork").Process(target=die_while_storing, args=(store, sources))
    child.start()
    child.join()
    assert child.exitcode == 9
    client = store.client()
    assert client.search_registered_models() == []
    registered = register(store, sources)
    (model,) = client.search_logged_models([store.experiment_id(client, "orders")])
    assert (registered.version, model.model_id, model.status.name) == ("1", registered.model_id, "READY")
    assert len(list(Path(store.artifact_root).glob("orders/models/*/artifacts"))) == 1


def test_work_in_progress_of_another_process_is_left_alone(store: TrackingStore, sources: VersionSources):
    first = register(store, sources)
    client = store.client()
    digest = client.get_model_version("orders", "1").tags["llm_assets.identity"]
    experiment = store.experiment_id(client, "orders")

    def pending(written: str) -> str:
        tags = {"llm_assets.identity": digest, "llm_assets.owner": written}
        return client.create_logged_model(experiment, name="orders", tags=tags).model_id

    alive, gone, elsewhere = pending(owner()), pending(f"{socket.gethostname()}:1:0"), pending("another-machine:1:5")
    Registration(client, experiment, "orders", digest, {}).leftover()
    left = {model.model_id for model in client.search_logged_models([experiment])}
    assert left == {first.model_id, alive, elsewhere} and gone not in left


def register_at_once(
    store: TrackingStore, sources: VersionSources, start: Any, results: "multiprocessing.Queue[tuple[str, str]]"
) -> None:
    start.wait()
    registered = register(store, sources)
    results.put((registered.version, registered.model_id))


@pytest.mark.parametrize("same", [True, False])
def test_two_processes_at_once_lose_nothing_and_double_nothing(
    store: TrackingStore, sources: VersionSources, tmp_path: Path, same: bool
):
    better = dataclasses.replace(sources, evaluation=write_evaluation(tmp_path / "better", [1] * 20))
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=register_at_once, args=(store, made, start, results))
        for made in (sources, sources if same else better)
    ]
    for child in children:
        child.start()
    returned = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join()
    client = store.client()
    versions = client.search_model_versions("name = 'orders'")
    assert len(versions) == len({version.tags["llm_assets.identity"] for version in versions}) == (1 if same else 2)
    kept = {(str(version.version), version.tags["llm_assets.model_id"]) for version in versions}
    assert set(returned) == kept  # both were told a version that is there, with the files behind it
    for _, model_id in kept:
        assert client.get_logged_model(model_id).status.name == "READY"
        assert (Path(store.artifact_root) / "orders/models" / model_id / "artifacts/MLmodel").exists()
    assert len(client.search_logged_models([store.experiment_id(client, "orders")])) == len(kept)


def test_a_name_that_is_a_prompt_is_refused_before_anything_is_a_version(store: TrackingStore, sources: VersionSources):
    publish_prompt("orders", "{{question}}", store)
    with pytest.raises(NameTaken, match=r"'orders' is a prompt.*registry\.name"):
        register(store, sources)


def test_what_it_says_about_itself_is_complete(
    store: TrackingStore, sources: VersionSources, lineage: PublishedLineage
):
    made = dataclasses.replace(
        sources, chat=lineage.chat, served=Served(base="acme/base@1", row_format={"type": "text_to_sql"})
    )
    registered = register(store, made)
    metadata = load_version("orders", registered.version, store.tracking_uri).metadata
    assert metadata["task"] == "llm/v1/completions" and metadata["base"] == "acme/base@1"
    assert metadata["row_format"] == {"type": "text_to_sql"}
    assert metadata["dtypes"] == {
        "preferred": "bfloat16",
        "serving": {"merged": "bfloat16", "gguf_q8_0": "float32"},
        "kv_cache": {"merged": "bfloat16", "gguf_q8_0": "float16"},
    }
    score = metadata["scores"]["merged"]
    assert score["low"] < score["value"] == 0.9 < score["high"] and score["rows"] == 20
    assert set(metadata["fingerprints"]) >= {"chat_dataset", "tokenized_dataset", "lora_adapter", "merged_model"}
    assert metadata["training"]["parameters"]["rank"] == 32 and metadata["merge"]["policy"] == "dequantized"
    run = store.client().get_run(registered.run_id).data
    assert run.params["dtype.kv_cache.gguf_q8_0"] == "float16"
    write_record(made.evaluation, registered, metadata)
    record = json.loads((made.evaluation / "registered.json").read_text())
    assert record["fingerprints"] == metadata["fingerprints"]  # what retention keeps


def test_a_dotted_name_is_registered_as_it_is(store: TrackingStore, sources: VersionSources):
    assert register(store, sources, "prod.sql.orders").uri == "models:/prod.sql.orders/1"
    assert load_version("prod.sql.orders", "1", store.tracking_uri).version == "1"


def test_parameters_metrics_and_origin_can_be_searched(store: TrackingStore, sources: VersionSources):
    registered = register(store, sources)
    client = store.client()
    model = client.get_logged_model(registered.model_id)
    assert {metric.key: metric.value for metric in model.metrics}["merged.exact_match"] == 0.9
    assert model.params["training.rank"] == "32"
    run = client.get_run(registered.run_id)
    assert run.data.tags["dagster.run_id"] == "r1"
    assert run.data.metrics["training.evaluation_loss"] == 0.25
    experiment = store.experiment_id(client, "orders")
    assert client.search_logged_models([experiment], filter_string="metrics.`merged.exact_match` > 0.8")
