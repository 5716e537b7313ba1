"""The chat dataset reports what it dropped and why, and its checks gate the run on bad data."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from llm_assets.assets.chat_dataset import DROP_SHARE, NO_SPLIT_LEAKAGE, ROLES, build_chat_dataset
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.raw_dataset import build_raw_dataset
from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.formats import PromptCompletionFormat
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

LINEAGE = Lineage("helper")
FORMAT = PromptCompletionFormat()
WORDS = ["river", "mountain", "castle", "garden", "engine", "violin", "desert", "harbor", "library", "comet"]


def materialize(home: Path, rows: list[dict[str, str]], **curation: Any) -> dg.ExecuteInProcessResult:
    (home / "rows.json").write_text(json.dumps(rows))
    assets = [
        build_raw_dataset(LINEAGE, [SourceConfig(path=str(home / "rows.json"))], FORMAT),
        build_chat_dataset(LINEAGE, FORMAT, CurationConfig(**curation), SplitConfig(validation=0.1, test=0.1)),
    ]
    resources = {"store": ArtifactStore(root=str(home / "store")), "tracking": MLflowTracking()}
    return dg.materialize(assets, resources=resources, raise_on_error=False)


def questions(count: int) -> list[dict[str, str]]:
    return [{"prompt": " ".join(f"{word}{n}" for word in WORDS), "completion": f"answer {n}"} for n in range(count)]


def metadata_of(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    return dict(result.get_asset_materialization_events()[-1].step_materialization_data.materialization.metadata)


def test_the_page_shows_what_was_kept_what_was_dropped_and_why(tmp_path: Path):
    benchmark = tmp_path / "quiz.txt"
    benchmark.write_text("which of these nine rivers runs through the most capital cities of all\n")
    rows = [
        *questions(100),
        *questions(10),
        {"prompt": " ", "completion": "x"},
        {"prompt": "mail me@example.org", "completion": "sure"},
        {"prompt": benchmark.read_text(), "completion": "the Danube"},
        {"prompt": "hello", "completion": "As an AI language model, I cannot greet."},
    ]
    result = materialize(tmp_path, rows, phrases={}, pii={}, contamination={"benchmarks": [str(benchmark)]})
    assert result.success
    metadata = metadata_of(result)
    assert (metadata["ingested_rows"].value, metadata["dagster/row_count"].value) == (114, 101)
    reasons = {r.data["reason"]: r.data["rows"] for r in metadata["dropped"].value.records}
    assert reasons == {"contaminated": 1, "duplicate": 10, "empty_turn": 1, "refusal": 1}
    assert sum(metadata[f"{split}_rows"].value for split in ("train", "validation", "test")) == 101
    steps = [(r.data["step"], r.data["rows_left"]) for r in metadata["funnel"].value.records]
    assert steps[0] == ("ingested", 114) and steps[-1] == ("leakage", 101)
    samples = [r.data for r in metadata["dropped_samples"].value.records]
    assert {s["reason"] for s in samples} == set(reasons) and len(samples) == 6
    assert all(s["row_id"] and s["source"] == "rows" and s["excerpt"] for s in samples)
    assert metadata["pii_email"].value == 1
    assert metadata["contaminated_by"].value.records[0].data == {"source": "quiz.txt", "rows": 1}
    assert [r.data["split"] for r in metadata["splits"].value.records] == ["train", "validation", "test"]
    assert all("data:image/png" in metadata[name].value for name in ("funnel_picture", "length_picture"))


@pytest.mark.parametrize(("curation", "failing"), [({}, set()), ({"max_drop_share": 0.2}, {DROP_SHARE})])
def test_checks_follow_their_bounds(tmp_path: Path, curation: dict[str, float], failing: set[str]):
    result = materialize(tmp_path, [*questions(100), *questions(40)], **curation)
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations() if "chat" in c.asset_key.path[-1]}
    assert set(checks) == {ROLES, NO_SPLIT_LEAKAGE, DROP_SHARE}
    assert {name for name, passed in checks.items() if not passed} == failing


def version(**curation: Any) -> str:
    asset = build_chat_dataset(LINEAGE, FORMAT, CurationConfig(**curation), SplitConfig())
    return asset.code_versions_by_key[LINEAGE.key("chat_dataset")] or ""


def test_bounds_of_checks_do_not_mark_the_asset_stale():
    assert version() == version(max_drop_share=0.1) != version(length={"max_chars": 100})


def test_another_content_of_a_benchmark_marks_the_asset_stale(tmp_path: Path):
    benchmark = tmp_path / "quiz.txt"
    versions = []
    for text in ("one", "two"):
        benchmark.write_text(text)
        versions.append(version(contamination={"benchmarks": [str(benchmark)]}))
    assert versions[0] != versions[1]
