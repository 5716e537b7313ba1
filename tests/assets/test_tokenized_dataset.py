"""The three data assets on a temporary store, with a real tokenizer."""

import json
import shutil
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from llm_assets.assets.chat_dataset import build_chat_dataset
from llm_assets.assets.conventions import Lineage, materialized
from llm_assets.assets.raw_dataset import build_raw_dataset
from llm_assets.assets.tokenized_dataset import build_tokenized_dataset
from llm_assets.data import CurationConfig, SourceConfig, SplitConfig, TokenizationConfig
from llm_assets.data.formats import TextToSQLFormat
from llm_assets.data.token_files import TokenFile
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

LINEAGE = Lineage("sql_demo", owners=("team:data",))
ASSETS = ("raw_dataset", "chat_dataset", "tokenized_dataset")


def write_questions(path: Path, rows: int) -> Path:
    """Rows of a text-to-SQL dataset; every question names another customer."""
    with path.open("w") as file:
        for n in range(rows):
            row = {
                "sql_context": f"create table orders (id integer, total integer); insert into orders values ({n}, 1);",
                "sql_prompt": f"how many orders does customer {n} have?",
                "sql": f"SELECT COUNT(*) FROM orders WHERE id = {n};",
            }
            file.write(json.dumps(row) + "\n")
    return path


def base_model(directory: Path) -> dg.AssetsDefinition:
    @dg.asset(key=LINEAGE.key("base_model"))
    def base(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        with store.staging() as staged:
            shutil.copytree(directory, staged, dirs_exist_ok=True)
            return materialized(store.publish(context.asset_key, staged), {})

    return base


def materialize(
    questions: Path, home: Path, tiny_base: Path, instance: dg.DagsterInstance, python: str | None = None, **changes
):
    format = TextToSQLFormat(system="answer with sql")
    assets = [
        build_raw_dataset(LINEAGE, [SourceConfig(path=str(questions))], format),
        build_chat_dataset(
            LINEAGE, format, CurationConfig(leakage_similarity=0.99), SplitConfig(validation=0.1, test=0.1)
        ),
        base_model(tiny_base),
        build_tokenized_dataset(LINEAGE, TokenizationConfig(**{"max_length_tokens": 256, **changes})),
    ]
    resources = {"store": ArtifactStore(root=str(home)), "tracking": MLflowTracking(), "worker": Worker(python=python)}
    return dg.materialize(assets, instance=instance, resources=resources, raise_on_error=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path):
    home = tmp_path_factory.mktemp("home")
    questions = write_questions(home / "questions.jsonl", 300)
    with dg.instance_for_test() as instance:
        first = materialize(questions, home, tiny_base, instance)
        second = materialize(questions, home, tiny_base, instance, python=str(home / "no_engine"))
        lines = [entry.user_message for entry in instance.all_logs(second.run_id)]
        yield first, second, lines


def of(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetMaterialization:
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == LINEAGE.key(name)]
    return event.step_materialization_data.materialization


def test_every_check_of_the_data_assets_passes_on_sound_rows(run):
    first, _, _ = run
    checks = {c.check_name: c.passed for c in first.get_asset_check_evaluations()}
    assert first.success
    assert len(checks) == 12 and all(checks.values()), checks


def test_a_rerun_publishes_the_same_bytes(run):
    first, second, _ = run
    for name in ASSETS:
        assert of(first, name).metadata["fingerprint"] == of(second, name).metadata["fingerprint"]


def test_unchanged_rows_keep_the_tokens_of_the_last_materialization(run):
    assert "300 rows keep the tokens they were published with." in run[2]


def test_without_an_engine_environment_parity_warns_with_the_remedy_and_blocks_nothing(run):
    _, second, _ = run
    (parity,) = [c for c in second.get_asset_check_evaluations() if c.check_name == "template_parity"]
    assert second.success and not parity.passed and parity.severity == dg.AssetCheckSeverity.WARN
    assert "make engine-env" in (parity.description or "")


def test_the_numbers_of_every_split_are_on_the_asset_page(run):
    metadata = of(run[0], "tokenized_dataset").metadata
    shown = {(record.data["split"], record.data["tokens"]) for record in metadata["percentiles"].value.records}
    assert shown == {(s, t) for s in ("train", "validation", "test") for t in ("prompt", "completion", "total")}
    assert metadata["characters_per_token"].value > 1 and len(metadata["longest_rows"].value.records) == 5


def test_tokens_reconcile_with_the_source_rows(run):
    first, _, _ = run
    assert of(first, "raw_dataset").metadata["dagster/row_count"].value == 300
    assert of(first, "tokenized_dataset").metadata["dagster/row_count"].value == 300


def test_the_sample_marks_the_answer_and_nothing_else(run):
    first, _, _ = run
    sample = of(first, "tokenized_dataset").metadata["sample"].value
    assert sample.count("⟦") == 1 + 1  # the legend and the one answer
    assert "⟦SELECT COUNT(*) FROM orders WHERE id =" in sample
    assert "<|im_end|>⟧" in sample


def test_packs_hold_every_training_row_once(run):
    first, _, _ = run
    path = Path(of(first, "tokenized_dataset").metadata["path"].value)
    rows = pq.read_table(path / "packs.parquet")["rows"].combine_chunks().flatten().to_pylist()
    assert sorted(rows) == list(range(len(TokenFile(path, "train"))))


def test_a_dataset_that_is_mostly_too_long_is_published_but_blocks(tmp_path: Path, tiny_base: Path):
    questions = write_questions(tmp_path / "questions.jsonl", 300)
    with dg.instance_for_test() as instance:
        result = materialize(questions, tmp_path, tiny_base, instance, max_length_tokens=60)
        failed = {c.check_name for c in result.get_asset_check_evaluations() if not c.passed}
        assert failed == {"truncation_share"}
