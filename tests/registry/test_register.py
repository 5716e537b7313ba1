import dataclasses
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from published_lineage import write_evaluation

from llm_assets.registry import placement
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.register import Registered, register_version
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


def test_an_evaluation_repeated_at_another_speed_makes_no_new_version(
    store: TrackingStore, sources: VersionSources, tmp_path: Path
):
    register(store, sources)
    slower = write_evaluation(tmp_path / "again", [1] * 18 + [0] * 2, tokens_per_second=3.0)
    assert not register(store, dataclasses.replace(sources, evaluation=slower)).created


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
    import llm_assets.registry.register as module

    module._Registration.create_version = lambda *_, **__: os._exit(9)  # type: ignore[method-assign]
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
