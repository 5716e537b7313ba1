import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_stand_in import TOKEN, Hub, hub_stand_in
from pydantic import ValidationError

from llm_assets.registry.contents import VersionSources
from llm_assets.registry.hub import HubRefused, HubTokenMissing, push_version
from llm_assets.registry.hub_config import HubConfig
from llm_assets.registry.register import register_version
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import RegisteredVersion, load_version

CONFIG = HubConfig(repo="acme/orders", license="apache-2.0")
REPOSITORIES = ["acme/orders", "acme/orders-adapter", "acme/orders-gguf_q8_0"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in speaks Git LFS, as the Hub does as well
    with hub_stand_in() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def version(store: TrackingStore, sources: VersionSources) -> RegisteredVersion:
    register_version("orders", sources, store, {}, lambda _: None)
    return load_version("orders", "1", store.tracking_uri)


def push(version: RegisteredVersion, config: HubConfig = CONFIG, base: str | None = "acme/base") -> list[Any]:
    return push_version(version, config, base, lambda _: None)


def head(card: bytes) -> dict[str, Any]:
    return yaml.safe_load(card.decode().split("---")[1])


def test_merged_model_adapter_and_variants_get_private_repositories_with_the_same_bytes(
    hub: Hub, version: RegisteredVersion
):
    pushed = push(version)
    assert [result.repo for result in pushed] == list(hub.repositories) == REPOSITORIES
    assert all(repository.private for repository in hub.repositories.values())
    assert hub.files("acme/orders")["model.safetensors"] == (version.model_directory / "model.safetensors").read_bytes()
    variant = version.variant_directory("gguf_q8_0")
    (gguf,) = variant.glob("*.gguf")
    assert hub.files("acme/orders-gguf_q8_0")[gguf.name] == gguf.read_bytes()
    assert "training.json" in hub.files("acme/orders-adapter")
    assert pushed[0].uploaded_bytes > gguf.stat().st_size


def test_cards_tell_the_hub_what_was_made_from_what(hub: Hub, version: RegisteredVersion):
    push(version)
    merged, adapter, variant = (hub.files(repo)["README.md"] for repo in REPOSITORIES)
    assert head(merged) == {
        "license": "apache-2.0",
        "base_model": "acme/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-assets", "orders"],
    }
    assert (head(adapter)["base_model_relation"], head(adapter)["library_name"]) == ("adapter", "peft")
    quantized = head(variant)
    assert (quantized["base_model"], quantized["base_model_relation"]) == ("acme/orders", "quantized")
    assert b"## Quality" in merged and b"llama.cpp" in variant


def test_pushing_the_same_version_again_sends_nothing(hub: Hub, version: RegisteredVersion):
    first = push(version)
    uploads, commits = len(hub.uploads), [len(r.commits) for r in hub.repositories.values()]
    again = push(version)
    assert [result.uploaded_files for result in again] == [0, 0, 0]
    assert [result.commit for result in again] == [result.commit for result in first]
    assert len(hub.uploads) == uploads and [len(r.commits) for r in hub.repositories.values()] == commits


def test_a_push_that_broke_off_continues_without_sending_a_large_file_twice(hub: Hub, version: RegisteredVersion):
    hub.fail_uploads_after = 1
    with pytest.raises(HubRefused, match="run again to continue"):
        push(version)
    assert "model.safetensors" not in hub.files("acme/orders")  # nothing is visible before the commit
    hub.fail_uploads_after = None
    push(version)
    assert len(hub.uploads) == len(set(hub.stored))
    assert "model.safetensors" in hub.files("acme/orders")


def test_files_that_the_version_no_longer_has_are_removed(hub: Hub, version: RegisteredVersion):
    push(version)
    hub.files("acme/orders")["model-00001-of-00002.safetensors"] = b"of an earlier version"
    push(version)
    assert "model-00001-of-00002.safetensors" not in hub.files("acme/orders")
    assert ".gitattributes" in hub.files("acme/orders")


def test_another_branch_is_made_and_only_it_is_written(hub: Hub, version: RegisteredVersion):
    push(version, HubConfig(repo="acme/orders", parts=("merged",), branch="next"))
    assert list(hub.repositories) == ["acme/orders"]
    assert "config.json" in hub.files("acme/orders", "next") and "config.json" not in hub.files("acme/orders")


def test_the_token_is_needed_and_never_shown(
    hub: Hub, version: RegisteredVersion, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    push_version(version, CONFIG, None, told.append)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_secret")
    with pytest.raises(HubRefused, match=r"401\. HF_TOKEN is not valid") as refused:
        push(version)
    everything = "\n".join([*told, caplog.text, str(refused.value)])
    assert TOKEN not in everything and "hf_wrong_secret" not in everything
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubTokenMissing, match="set HF_TOKEN"):
        push(version)


def test_a_hub_that_does_not_answer_is_named_with_what_to_check(
    version: RegisteredVersion, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubRefused, match=r"acme/orders: the Hub cannot be reached .*HF_ENDPOINT"):
        push(version)


@pytest.mark.parametrize("repo", ["orders", "acme/team/orders", "https://huggingface.co/acme/orders", ""])
def test_a_repository_that_is_not_owner_and_name_is_refused(repo: str):
    with pytest.raises(ValidationError, match="owner/name"):
        HubConfig(repo=repo)


def test_parts_that_are_not_asked_for_have_no_repository():
    assert HubConfig(repo="a/b", parts=("adapter",)).repositories(("w4a16",)) == {"adapter": "a/b-adapter"}
    assert HubConfig(repo="a/b").repositories(("w4a16",))["w4a16"] == "a/b-w4a16"


def test_the_adapter_of_the_version_is_what_training_published(version: RegisteredVersion, sources: VersionSources):
    stored = version.directory / "artifacts/adapter/training.json"
    assert stored.samefile(Path(sources.adapter / "training.json"))
