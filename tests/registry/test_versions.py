import os
import shutil
from pathlib import Path

import pytest

from llm_assets.registry.contents import VersionSources
from llm_assets.registry.promote import promote
from llm_assets.registry.register import register_version
from llm_assets.registry.round_trip import registry_round_trip
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import RegisteredVersion, VariantUnknown, VersionUnknown, _download, load_version


@pytest.fixture
def loaded(store: TrackingStore, sources: VersionSources) -> RegisteredVersion:
    register_version("orders", sources, store, {}, lambda _: None)
    return load_version("orders", "1", store.tracking_uri)


def test_a_version_tells_its_generation_settings_shape_and_lengths(loaded: RegisteredVersion):
    assert loaded.generation == {"temperature": 0.0, "max_new_tokens": 7, "top_p": 1.0, "stop": [";"], "seed": 0}
    assert loaded.metadata["architecture"]["class"] == "LlamaForCausalLM"
    assert loaded.metadata["architecture"]["layers"] == 2
    assert loaded.metadata["lengths"]["prompt"]["p50"] <= loaded.metadata["lengths"]["prompt"]["p100"]
    assert loaded.metadata["merge"] == {"policy": "dequantized", "dtype": "bfloat16"}


def test_a_download_is_not_stopped_by_what_a_killed_process_with_our_number_left(
    loaded: RegisteredVersion, tmp_path: Path
):
    cache = tmp_path / "cache" / loaded.model_id
    cache.with_name(f"{cache.name}.{os.getpid()}").mkdir(parents=True)
    store = TrackingStore.resolve(f"sqlite:///{tmp_path / 'mlflow.db'}")
    _download(store, loaded.directory.as_uri(), cache)
    assert (cache / "MLmodel").read_text() == (loaded.directory / "MLmodel").read_text()
    assert len(list(cache.parent.iterdir())) == 2  # nothing of ours beside it


def test_variants_are_found_by_name(loaded: RegisteredVersion):
    assert loaded.variant_directory("merged") == loaded.model_directory
    assert list(loaded.variant_directory("gguf_q8_0").glob("*.gguf"))


def test_an_unknown_variant_names_those_there_are(loaded: RegisteredVersion):
    with pytest.raises(VariantUnknown, match=r"no variant 'nvfp4'. It holds: merged, gguf_q8_0"):
        loaded.variant_directory("nvfp4")


def test_an_unknown_name_lists_the_registered_ones(loaded: RegisteredVersion, store: TrackingStore):
    with pytest.raises(VersionUnknown, match=r"No model 'order'.*Registered: orders"):
        load_version("order", "1", store.tracking_uri)


def test_an_unknown_version_or_alias_lists_versions_and_aliases(loaded: RegisteredVersion, store: TrackingStore):
    promote("orders", "1", "champion", store)
    for wanted in ("7", "production"):
        with pytest.raises(VersionUnknown, match=rf"'{wanted}'.*Versions: \[1\]; aliases: champion -> 1"):
            load_version("orders", wanted, store.tracking_uri)


def test_the_mlflow_model_answers_with_the_versions_settings(loaded: RegisteredVersion, store: TrackingStore):
    import mlflow

    mlflow.set_tracking_uri(store.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/orders/1")
    (answer,) = model.predict({"prompt": ["how many orders are there?"]})
    tokenizer = model.unwrap_python_model().tokenizer
    assert isinstance(answer, str) and len(tokenizer(answer)["input_ids"]) <= 7
    longer = model.predict({"prompt": ["how many orders are there?"]}, params={"max_new_tokens": 30, "stop": []})[0]
    assert longer.startswith(answer[:3])
    as_messages = '[{"role": "user", "content": "how many orders are there?"}]'
    assert model.predict({"prompt": [as_messages]}) == [answer]


def test_an_untouched_version_makes_the_round_trip(loaded: RegisteredVersion, sources: VersionSources):
    result = registry_round_trip(sources, loaded)
    assert result.passed, result.rows


def test_a_changed_file_a_lost_one_and_another_template_fail_the_round_trip(
    loaded: RegisteredVersion, sources: VersionSources
):
    for name in ("config.json", "chat_template.jinja"):
        path = loaded.model_directory / name
        text = path.read_text()
        path.unlink()  # it is a hard link: never write through it
        path.write_text(text + " ")
    (loaded.variant_directory("gguf_q8_0") / "tokenizer.json").unlink()
    result = registry_round_trip(sources, loaded)
    problems = {row["what"]: row["problem"] for row in result.rows}
    assert not result.passed
    assert problems["artifacts/model/config.json"] == "has other bytes"
    assert problems["artifacts/quantized/gguf_q8_0/tokenizer.json"] == "is missing"
    assert "merged/chat_template.jinja" in problems


def test_other_generation_defaults_fail_the_round_trip(loaded: RegisteredVersion, sources: VersionSources, tmp_path):
    import dataclasses

    other = dataclasses.replace(loaded, generation={**loaded.generation, "temperature": 1.0})
    assert not registry_round_trip(sources, other).passed
    changed = tmp_path / "other"
    shutil.copytree(sources.evaluation, changed)
    scoreboard = (changed / "scoreboard.json").read_text()
    (changed / "scoreboard.json").write_text(scoreboard.replace('"max_new_tokens": 7', '"max_new_tokens": 9'))
    what = {row["what"] for row in registry_round_trip(dataclasses.replace(sources, evaluation=changed), loaded).rows}
    assert {"generation", "signature defaults"} <= what
