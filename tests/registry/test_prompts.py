from pathlib import Path

import pytest

from llm_assets.registry.prompts import (
    PromptUnknown,
    PromptUriInvalid,
    load_prompt,
    publish_prompt,
    read_prompt_record,
    write_prompt_record,
)
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.resources.tracking import MLflowTracking

FIRST, SECOND = "{{schema}}\n{{question}}", "Schema: {{schema}}\nQuestion: {{question}}"
CHAT = [{"role": "system", "content": "You write SQL."}, {"role": "user", "content": "{{question}}"}]


@pytest.fixture
def prompts(store: TrackingStore) -> TrackingStore:
    publish_prompt("text2sql", FIRST, store, alias="production")
    publish_prompt("text2sql", SECOND, store)
    return store


def test_an_alias_means_a_version_at_the_time_it_is_asked(prompts: TrackingStore):
    before = load_prompt("prompts:/text2sql@production", prompts)
    assert (before.version, before.uri, before.template) == (1, "prompts:/text2sql/1", FIRST)
    prompts.client().set_prompt_alias("text2sql", "production", 2)
    assert load_prompt("prompts:/text2sql@production", prompts).template == SECOND
    assert load_prompt("prompts:/text2sql/1", prompts) == before


def test_a_prompt_tells_its_variables_and_reads_as_messages(prompts: TrackingStore):
    prompt = load_prompt("prompts:/text2sql/2", prompts)
    assert prompt.variables == ("schema", "question")
    assert prompt.messages == [{"role": "user", "content": SECOND}]
    chat = publish_prompt("text2sql_chat", CHAT, prompts)
    assert chat.messages == CHAT and chat.variables == ("question",)


def test_publishing_an_unchanged_template_makes_no_version(prompts: TrackingStore):
    assert publish_prompt("text2sql", SECOND, prompts, alias="production").version == 2
    assert load_prompt("prompts:/text2sql@production", prompts).version == 2
    assert publish_prompt("text2sql", FIRST, prompts).version == 3


def test_the_resource_resolves_prompts_in_its_own_registry(prompts: TrackingStore):
    tracking = MLflowTracking(tracking_uri=prompts.tracking_uri)
    assert tracking.prompt("prompts:/text2sql@production").uri == "prompts:/text2sql/1"


def test_an_unknown_prompt_names_those_there_are(prompts: TrackingStore):
    with pytest.raises(PromptUnknown, match=r"no prompt 'text3sql'.*Prompts: text2sql\. Register it"):
        load_prompt("prompts:/text3sql@production", prompts)


@pytest.mark.parametrize("wanted", ["@staging", "/9"])
def test_an_unknown_version_or_alias_names_versions_and_aliases(prompts: TrackingStore, wanted: str):
    with pytest.raises(PromptUnknown, match=r"Versions: \[1, 2\]; aliases: production -> 1"):
        load_prompt(f"prompts:/text2sql{wanted}", prompts)


@pytest.mark.parametrize(
    "uri", ["text2sql", "prompts:/text2sql", "prompts:/a/b/c", "models:/text2sql/1", "prompts:/a/0"]
)
def test_what_is_no_prompt_uri_is_refused_with_both_forms(uri: str, tmp_path: Path):
    with pytest.raises(PromptUriInvalid, match=r"prompts:/name@alias.*prompts:/name/version"):
        load_prompt(uri, TrackingStore(f"sqlite:///{tmp_path}/never_made.db", str(tmp_path)))
    assert not (tmp_path / "never_made.db").exists()


def test_the_record_beside_an_artifact_gives_the_prompts_back(prompts: TrackingStore, tmp_path: Path):
    used = [load_prompt("prompts:/text2sql/1", prompts), publish_prompt("chat", CHAT, prompts)]
    write_prompt_record(tmp_path, used)
    assert read_prompt_record(tmp_path) == used
    assert read_prompt_record(tmp_path / "elsewhere") == []
