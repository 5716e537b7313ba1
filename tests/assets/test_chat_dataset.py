"""The chat dataset reports what it dropped, and its checks gate the run on bad data."""

import json
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.assets.chat_dataset import DROP_SHARE, NO_SPLIT_LEAKAGE, ROLES, build_chat_dataset
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.raw_dataset import build_raw_dataset
from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.formats import PromptCompletionFormat
from llm_assets.resources.artifact_store import ArtifactStore

LINEAGE = Lineage("helper")
FORMAT = PromptCompletionFormat()
WORDS = ["river", "mountain", "castle", "garden", "engine", "violin", "desert", "harbor", "library", "comet"]


def materialize(home: Path, rows: list[dict[str, str]], **curation: float) -> dg.ExecuteInProcessResult:
    (home / "rows.json").write_text(json.dumps(rows))
    assets = [
        build_raw_dataset(LINEAGE, [SourceConfig(path=str(home / "rows.json"))], FORMAT),
        build_chat_dataset(LINEAGE, FORMAT, CurationConfig(**curation), SplitConfig(validation=0.1, test=0.1)),
    ]
    resources = {"store": ArtifactStore(root=str(home / "store"))}
    return dg.materialize(assets, resources=resources, raise_on_error=False)


def questions(count: int) -> list[dict[str, str]]:
    return [{"prompt": " ".join(f"{word}{n}" for word in WORDS), "completion": f"answer {n}"} for n in range(count)]


def test_metadata_counts_what_was_kept_and_dropped_and_why(tmp_path: Path):
    rows = [*questions(100), *questions(10), {"prompt": " ", "completion": "x"}]
    result = materialize(tmp_path, rows)
    assert result.success
    event = result.get_asset_materialization_events()[-1]
    metadata = event.step_materialization_data.materialization.metadata
    assert (metadata["ingested_rows"].value, metadata["dagster/row_count"].value) == (111, 100)
    reasons = {r.data["reason"]: r.data["rows"] for r in metadata["dropped"].value.records}
    assert reasons == {"duplicate": 10, "empty_turn": 1}
    assert sum(metadata[f"{split}_rows"].value for split in ("train", "validation", "test")) == 100


@pytest.mark.parametrize(("curation", "failing"), [({}, set()), ({"max_drop_share": 0.2}, {DROP_SHARE})])
def test_checks_follow_their_bounds(tmp_path: Path, curation: dict[str, float], failing: set[str]):
    result = materialize(tmp_path, [*questions(100), *questions(40)], **curation)
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations() if "chat" in c.asset_key.path[-1]}
    assert set(checks) == {ROLES, NO_SPLIT_LEAKAGE, DROP_SHARE}
    assert {name for name, passed in checks.items() if not passed} == failing


def test_bounds_of_checks_do_not_mark_the_asset_stale():
    def version(**curation: float) -> str:
        asset = build_chat_dataset(LINEAGE, FORMAT, CurationConfig(**curation), SplitConfig())
        return asset.code_versions_by_key[LINEAGE.key("chat_dataset")] or ""

    assert version() == version(max_drop_share=0.1) != version(max_chars=100)
