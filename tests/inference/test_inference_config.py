"""What the inference block refuses, and how overrides combine with the registered settings."""

import pytest
from pydantic import ValidationError

from llm_assets.inference import InferenceConfig

STATIC = {"type": "static", "keys": ["a", "b"]}


def test_an_input_path_without_a_place_for_the_partition_is_refused():
    with pytest.raises(ValidationError, match=r"has no \{partition\}.*questions/\{partition\}\.parquet"):
        InferenceConfig(inputs="questions.parquet", partitions=STATIC)


@pytest.mark.parametrize("keys", [["a", "a"], ["a...b"], ["a/b"], [""], []])
def test_keys_that_dagster_cannot_use_are_refused(keys):
    with pytest.raises(ValidationError):
        InferenceConfig(inputs="{partition}.csv", partitions={"type": "static", "keys": keys})


def test_an_unknown_time_zone_is_refused():
    with pytest.raises(ValidationError, match="Europe/Berlin"):
        daily = {"type": "daily", "start": "2025-01-01", "timezone": "Mars/Base"}
        InferenceConfig(inputs="{partition}.csv", partitions=daily)


def test_overrides_lie_on_top_of_what_was_registered():
    config = InferenceConfig(inputs="{partition}.csv", partitions=STATIC, generation={"max_new_tokens": 7})
    generation = config.generation.over({"temperature": 0.3, "max_new_tokens": 96, "stop": [";"]})
    assert (generation.temperature, generation.max_new_tokens, generation.stop) == (0.3, 7, (";",))


def test_the_partition_fills_every_placeholder():
    config = InferenceConfig(inputs="in/{partition}/{partition}.csv", partitions=STATIC)
    assert config.inputs_of("a") == "in/a/a.csv"
