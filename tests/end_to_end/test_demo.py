"""What `make demo` leaves behind, after it was killed in training and in inference."""

import json

import dagster as dg
import pyarrow.parquet as pq
import pytest

from llm_assets.assets.conventions import unmet_checks
from llm_assets.definitions import defs
from llm_assets.registry.versions import load_version

MODEL, PARTITIONS = "sql_demo", ["batch_00", "batch_01", "batch_02"]
WARNINGS = {"beats_defaults", "variants_keep_quality"}  # worth a look, stop nothing


def graph():
    return defs().resolve_asset_graph()


def ours() -> list[dg.AssetKey]:
    return [key for key in graph().toposorted_asset_keys if key.path[0] == MODEL]


def read(demo, instance, asset: str, name: str) -> dict:
    artifact = demo.store.open(instance, dg.AssetKey([MODEL, *asset.split("/")]))
    return json.loads((artifact.path / name).read_text())


@pytest.fixture(scope="module")
def scoreboard(demo, instance) -> dict:
    return read(demo, instance, "evaluation", "scoreboard.json")


# --- the lineage -----------------------------------------------------------------------------------------------------


def test_every_asset_of_the_lineage_is_materialized(demo, instance):
    missing = [key.to_user_string() for key in ours() if instance.get_latest_materialization_event(key) is None]

    assert missing == []


def test_every_blocking_check_is_green(demo, instance):
    checks = {check for key in ours() for check in graph().get_check_keys_for_assets({key})}

    assert len(checks) > 30
    assert unmet_checks(instance, [check for check in checks if check.name not in WARNINGS]) == []


def test_every_asset_page_has_numbers_that_become_plots(demo, instance):
    for key in ours():
        event = instance.get_latest_materialization_event(key)
        metadata = event.asset_materialization.metadata
        assert [n for n, v in metadata.items() if isinstance(v, (dg.IntMetadataValue, dg.FloatMetadataValue))], key


def test_the_same_template_travels_with_every_model(demo, instance):
    tokens = demo.store.open(instance, dg.AssetKey([MODEL, "tokenized_dataset"])).path / "tokenizer"
    template = (tokens / "chat_template.jinja").read_text()
    for asset in ("lora_adapter", "merged_model", "quantized/w4a16", "quantized/fp8_dynamic", "quantized/gguf_q8_0"):
        model = demo.store.open(instance, dg.AssetKey([MODEL, *asset.split("/")])).path
        assert (model / "chat_template.jinja").read_text() == template, asset


# --- quality ---------------------------------------------------------------------------------------------------------


def test_fine_tuning_lifts_the_base_from_nothing_to_most_answers_right(scoreboard):
    base, merged = scoreboard["candidates"]["base"], scoreboard["candidates"]["merged"]

    assert base["exact_match"] == base["execution_accuracy"] == 0.0
    assert merged["exact_match"] > 0.75
    assert merged["execution_accuracy"] > 0.75


@pytest.mark.parametrize("variant", ["w4a16", "fp8_dynamic", "gguf_q8_0"])
def test_a_variant_is_smaller_and_keeps_the_quality(scoreboard, variant):
    candidate, merged = scoreboard["candidates"][variant], scoreboard["candidates"]["merged"]

    assert candidate["bytes"] < 0.7 * merged["bytes"]
    assert candidate["exact_match"] > merged["exact_match"] - 0.05


def test_each_candidate_was_answered_by_the_engine_that_runs_it(scoreboard):
    engines = {name: candidate["engine"] for name, candidate in scoreboard["candidates"].items()}

    assert engines.pop("gguf_q8_0") == "llama_cpp"
    assert set(engines.values()) == {"vllm"}


# --- registry and inference ------------------------------------------------------------------------------------------


def test_the_champion_is_what_the_registry_returns(demo, instance):
    champion = read(demo, instance, "champion", "champion.json")
    uri = f"sqlite:///{demo.directory}/.llm_assets/mlflow.db"
    version = load_version(MODEL, "champion", uri)

    assert str(version.version) == str(champion["version"])
    assert (version.variant_directory("w4a16") / "config.json").exists()
    assert version.generation["max_new_tokens"] == 96


@pytest.mark.parametrize("partition", PARTITIONS)
def test_every_input_row_has_exactly_one_answer_although_the_run_was_killed(demo, instance, partition):
    inputs, outputs = (
        pq.read_table(demo.store.open(instance, dg.AssetKey([MODEL, asset]), partition).path / "rows.parquet")
        for asset in ("inference_inputs", "inference_outputs")
    )

    assert sorted(outputs["row_id"].to_pylist()) == sorted(inputs["row_id"].to_pylist())
    assert set(outputs["finish_reason"].to_pylist()) == {"stop"}
    assert set(outputs["variant"].to_pylist()) == {"w4a16"}


def test_all_partitions_were_answered_in_one_run(demo, instance):
    key = dg.AssetKey([MODEL, "inference_outputs"])
    records = instance.fetch_materializations(key, limit=10).records

    assert sorted(record.partition_key for record in records) == PARTITIONS
    assert len({record.run_id for record in records}) == 1


# --- crashes and repetition ------------------------------------------------------------------------------------------


def test_a_run_killed_in_training_continues_after_its_last_checkpoint(demo):
    killed, continued = demo.outputs[1], demo.outputs[2]

    assert f"✓ {MODEL}/lora_adapter" not in killed
    assert "was killed; continuing" in continued
    assert f"▶ {MODEL}/raw_dataset" not in continued
    assert "continuing after step" in continued


def test_a_run_killed_in_inference_continues_with_inference(demo):
    last = demo.outputs[3]

    assert f"▶ {MODEL}/lora_adapter" not in last
    assert f"✓ {MODEL}/inference_outputs" in last


@pytest.mark.parametrize(
    "text",
    [
        "rows ingested", "dropped:", "supervised, in", "packs", "trials:", "best: learning_rate", "evaluation loss",
        "exact match", "execution acc.", "gguf_q8_0", "alias champion → version 1", "batch_02", "completion tokens",
        "Seconds per asset", "✓ champion:gate", "make dev", "make mlflow-ui",
    ],
)  # fmt: skip
def test_the_report_names(demo, text):
    assert text in demo.outputs[3]


def test_a_second_demo_finds_nothing_to_do_and_says_so(demo):
    assert demo.run("llm_assets.demo.run") == 0

    assert "Nothing changed" in demo.outputs[-1]
    assert "▶" not in demo.outputs[-1]
