"""The partitioned assets on a real instance: ranges of partitions, per-partition events, and what refuses to run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from llm_assets.assets import inference_outputs as outputs_module
from llm_assets.assets.conventions import Lineage, materialized
from llm_assets.assets.inference_inputs import build_inference_inputs
from llm_assets.assets.inference_outputs import InferenceRefused, build_inference_outputs
from llm_assets.assets.token_usage import build_token_usage
from llm_assets.data.formats import TextToSQLFormat
from llm_assets.inference import InferenceConfig
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.gguf_model import write_gguf
from llm_assets.registry.evidence import NotPromoted
from llm_assets.registry.versions import RegisteredVersion
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

LINEAGE = Lineage("m")
KEYS = ["a", "b", "c"]
INPUTS, OUTPUTS, USAGE = (LINEAGE.key(name) for name in ("inference_inputs", "inference_outputs", "token_usage"))
GATE = [dg.AssetCheckKey(INPUTS, "schema")]


@LINEAGE.asset(
    "champion",
    stage="registry",
    kinds=set(),
    version="1",
    check_specs=[dg.AssetCheckSpec("gate", asset=LINEAGE.key("champion"))],
)
def champion(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
    promoted = json.loads((Path(store.root) / "promote.json").read_text())
    with store.staging() as staged:
        (staged / "champion.json").write_text(json.dumps({"name": "m", "version": promoted["version"]}))
        result = materialized(store.publish(context.asset_key, staged), {})
    return result._replace(check_results=[dg.AssetCheckResult(check_name="gate", passed=promoted["passed"])])


@pytest.fixture(scope="module")
def version_directory(tiny_base, tmp_path_factory):
    """A registered version's files: the tiny model, and its f16 GGUF as a variant."""
    directory = tmp_path_factory.mktemp("version")
    shutil.copytree(tiny_base, directory / "artifacts/model")
    variant = directory / "artifacts/quantized/gguf"
    variant.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_base / name, variant)
    write_gguf(tiny_base, variant, QuantizationConfig(scheme="gguf_f16"), lambda _: None)
    return directory


@pytest.fixture
def home(tmp_path, version_directory, monkeypatch):
    """A temporary installation with three files of questions; `promote` and `run` are what its user does."""

    def load_version(name, number, tracking_uri, registry_uri):
        metadata = {"variants": {"gguf": {"path": "artifacts/quantized/gguf"}}, "lengths": {"prompt": {"p100": 500}}}
        passed = json.loads((tmp_path / "store/promote.json").read_text())["passed"]
        tags = {"llm_assets.gate": json.dumps({"kind": "gate", "passed": passed, "summary": "Measured."})}
        generation = {"max_new_tokens": 6}
        return RegisteredVersion(name, number, f"m-{number}", version_directory, generation, metadata, (), tags)

    monkeypatch.setattr(outputs_module, "load_version", load_version)
    questions = tmp_path / "questions"
    questions.mkdir()
    for key in KEYS:
        write_questions(questions / f"{key}.parquet", [f"how many orders has {key}{n}?" for n in range(4)])
    config = InferenceConfig(
        inputs=f"{questions}/{{partition}}.parquet",
        partitions={"type": "static", "keys": KEYS},
        variant="gguf",
        engine={"threads": 1},
        max_length_capped_share=1.0,
        max_empty_share=1.0,
        max_partitions_per_run=2,
        cost_per_hour_usd=1.0,
    )
    assets = [
        champion,
        build_inference_inputs(LINEAGE, config, TextToSQLFormat()),
        build_inference_outputs(LINEAGE, config, "m", GATE),
        build_token_usage(LINEAGE, config),
    ]
    store = ArtifactStore(root=str(tmp_path / "store"))
    resources = {"store": store, "worker": Worker(), "tracking": MLflowTracking()}
    (tmp_path / "store").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:

        def promote(version, passed=True):
            (tmp_path / "store/promote.json").write_text(json.dumps({"version": version, "passed": passed}))
            return run(champion.key)

        def run(key, first=None, last=None, **options):
            span = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last or first}
            where = {"tags": span} if first else {}
            return dg.materialize(assets, selection=[key], instance=instance, resources=resources, **where, **options)

        def records(key, partition):
            wanted = dg.AssetRecordsFilter(key, asset_partitions=[partition])
            return [record.asset_materialization for record in instance.fetch_materializations(wanted, limit=9).records]

        def status(key, partition=None):
            graph = dg.Definitions(assets=assets, resources=resources).resolve_asset_graph()
            return CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance)).get_status(
                key, partition
            )

        yield SimpleNamespace(
            promote=promote,
            run=run,
            records=records,
            status=status,
            store=store,
            instance=instance,
            questions=questions,
        )


def write_questions(path, questions):
    rows = [{"sql_context": "create table orders (id integer)", "sql_prompt": question} for question in questions]
    pq.write_table(pa.Table.from_pylist(rows), path)


def lines(home, result):
    return [entry.user_message for entry in home.instance.all_logs(result.run_id)]


def test_a_range_is_answered_by_one_engine_and_every_partition_has_its_own_event(home):
    home.promote("1")
    home.run(INPUTS, "a", "c")
    result = home.run(OUTPUTS, "a", "b")

    assert sum(line.startswith("Starting llama_cpp") for line in lines(home, result)) == 1
    seen = {}
    for key in ("a", "b"):
        (record,) = home.records(OUTPUTS, key)
        artifact = home.store.open(home.instance, OUTPUTS, key)
        assert record.metadata["fingerprint"].value == artifact.fingerprint
        assert record.metadata["rows"].value == record.metadata["dagster/partition_row_count"].value == 4
        rows = pq.read_table(artifact.path / "rows.parquet")
        assert all(f"{key}{n}?" in text for n, text in enumerate(rows["sql_prompt"].to_pylist()))
        assert set(rows["model_version"].to_pylist()) == {"1"}
        assert set(rows["variant"].to_pylist()) == {"gguf"}
        seen[key] = artifact.fingerprint
    assert seen["a"] != seen["b"]
    assert home.records(OUTPUTS, "c") == []
    checks = {evaluation.check_name: evaluation.passed for evaluation in result.get_asset_check_evaluations()}
    names = ("complete", "error_share", "empty_share", "length_capped_share", "token_stats")
    assert checks == dict.fromkeys(names, True)


def test_a_single_partition_has_its_fingerprint_as_data_version(home):
    home.run(INPUTS, "b")
    (record,) = home.records(INPUTS, "b")
    assert record.tags["dagster/data_version"] == home.store.open(home.instance, INPUTS, "b").fingerprint


def test_partitions_are_fresh_after_ranges_and_stale_when_what_they_read_changes(home):
    home.promote("1")
    home.run(INPUTS, "a", "b")
    home.run(INPUTS, "c")
    home.run(OUTPUTS, "a", "c")
    home.run(USAGE)
    assert [home.status(INPUTS, key) for key in KEYS] == [StaleStatus.FRESH] * 3
    assert [home.status(OUTPUTS, key) for key in KEYS] == [StaleStatus.FRESH] * 3
    assert home.status(USAGE) == StaleStatus.FRESH

    write_questions(home.questions / "b.parquet", ["another question?"])
    home.run(INPUTS, "b")
    assert [home.status(OUTPUTS, key) for key in KEYS] == [StaleStatus.FRESH, StaleStatus.STALE, StaleStatus.FRESH]

    home.run(OUTPUTS, "b")
    home.promote("2")
    assert [home.status(OUTPUTS, key) for key in KEYS] == [StaleStatus.STALE] * 3


def test_only_changed_rows_start_an_engine(home):
    home.promote("1")
    home.run(INPUTS, "a", "b")
    home.run(OUTPUTS, "a", "b")
    before = home.store.open(home.instance, OUTPUTS, "a").fingerprint

    unchanged = home.run(OUTPUTS, "a", "b")
    assert not any("rows to answer" in line for line in lines(home, unchanged))
    assert home.store.open(home.instance, OUTPUTS, "a").fingerprint == before

    kept = [f"how many orders has a{n}?" for n in range(3)]
    write_questions(home.questions / "a.parquet", [*kept, "which order is new?"])
    home.run(INPUTS, "a")
    changed = home.run(OUTPUTS, "a", "b")
    assert [line for line in lines(home, changed) if "rows to answer" in line] == ["a: 1 of 1 rows to answer."]
    assert home.records(OUTPUTS, "a")[0].metadata["kept_rows"].value == 3


def test_a_new_champion_answers_everything_again(home):
    home.promote("1")
    home.run(INPUTS, "a")
    home.run(OUTPUTS, "a")
    home.promote("2")
    home.run(OUTPUTS, "a")
    rows = pq.read_table(home.store.open(home.instance, OUTPUTS, "a").path / "rows.parquet")
    assert set(rows["model_version"].to_pylist()) == {"2"}


def test_a_version_without_a_passed_gate_of_its_own_is_not_asked(home):
    home.promote("1", passed=False)
    home.run(INPUTS, "a")
    with pytest.raises(NotPromoted, match=r"m version 1 has no passed gate on record\. Measured"):
        home.run(OUTPUTS, "a")


def test_a_red_gate_of_a_refused_challenger_does_not_stop_the_version_in_use(home):
    home.promote("1")
    red = dg.AssetCheckEvaluation(
        asset_key=LINEAGE.key("champion"),
        check_name="gate",
        passed=False,
        metadata={},
        severity=dg.AssetCheckSeverity.ERROR,
    )
    home.instance.report_runless_asset_event(red)
    home.run(INPUTS, "a")
    assert home.run(OUTPUTS, "a").success


def test_inputs_without_the_promised_columns_never_get_answered(home):
    home.promote("1")
    write_questions(home.questions / "a.parquet", ["", "", "one question?"])
    assert not home.run(INPUTS, "a", raise_on_error=False).success
    with pytest.raises(InferenceRefused, match="m/inference_inputs:schema"):
        home.run(OUTPUTS, "a")


def test_a_failed_run_keeps_its_answers_for_the_next(home, monkeypatch):
    home.promote("1")
    home.run(INPUTS, "a", "b")

    def finish_partition(*_):
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as broken:
        broken.setattr(outputs_module, "finish_partition", finish_partition)
        assert not home.run(OUTPUTS, "a", "b", raise_on_error=False).success
    again = home.run(OUTPUTS, "a", "b")
    assert "a: 0 of 4 rows to answer." in lines(home, again)
    assert not any(line.startswith("Starting llama_cpp") for line in lines(home, again))
    assert [len(home.records(OUTPUTS, key)) for key in ("a", "b")] == [1, 1]


def test_usage_counts_every_answered_partition(home):
    home.promote("1")
    home.run(INPUTS, "a", "b")
    home.run(OUTPUTS, "a", "b")
    result = home.run(USAGE)
    (event,) = result.asset_materializations_for_node("m__token_usage")
    usage = pq.read_table(home.store.open(home.instance, USAGE).path / "usage.parquet").to_pylist()
    assert [row["partition"] for row in usage] == ["a", "b"]
    assert event.metadata["completion_tokens"].value == sum(row["completion_tokens"] for row in usage) > 0
    assert event.metadata["cost_usd"].value > 0
    assert "data:image/png" in event.metadata["tokens_by_partition"].value


def test_a_backfill_is_cut_into_runs_of_the_configured_size(home):
    config = InferenceConfig(
        inputs="{partition}.csv", partitions={"type": "daily", "start": "2025-01-01"}, max_partitions_per_run=3
    )
    asset = build_inference_outputs(LINEAGE, config, "m", GATE)
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(3)
    assert isinstance(asset.partitions_def, dg.DailyPartitionsDefinition)
    assert asset.partitions_def.get_first_partition_key() == "2025-01-01"
