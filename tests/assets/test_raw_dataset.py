"""Sources that cannot be read whole stop the run before anything is published."""

import json
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.raw_dataset import NOT_EMPTY, SCHEMA, SOURCES_COMPLETE, build_raw_dataset
from llm_assets.data import SourceConfig
from llm_assets.data.formats import AlpacaFormat
from llm_assets.data.ingestion import RowMissingColumn
from llm_assets.resources.artifact_store import ArtifactStore

LINEAGE = Lineage("helper")


def materialize(home: Path, *sources: Path) -> dg.ExecuteInProcessResult:
    asset = build_raw_dataset(LINEAGE, [SourceConfig(path=str(path)) for path in sources], AlpacaFormat())
    return dg.materialize([asset], resources={"store": ArtifactStore(root=str(home / "store"))})


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def test_rows_of_all_sources_are_published_with_passing_checks(tmp_path: Path):
    one = write(tmp_path / "one.json", {"instruction": "a", "output": "b"})
    two = write(tmp_path / "two.json", {"instruction": "c", "input": "x", "output": "d"})
    result = materialize(tmp_path, one, two)
    (event,) = result.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    assert metadata["dagster/row_count"].value == 2
    names = [column.name for column in metadata["dagster/column_schema"].value.columns]
    assert names == ["instruction", "output", "input", "row_id", "source", "content_hash"]
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations()}
    assert checks == {SCHEMA: True, NOT_EMPTY: True, SOURCES_COMPLETE: True}


def test_a_source_without_a_needed_column_publishes_nothing(tmp_path: Path):
    one = write(tmp_path / "one.json", {"instruction": "a", "output": "b"})
    two = write(tmp_path / "two.json", {"question": "c", "output": "d"})
    with pytest.raises(RowMissingColumn, match=r"two\.json, row 1: no column 'instruction'"):
        materialize(tmp_path, one, two)
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_a_change_of_sources_or_format_changes_the_code_version():
    def version(path: str, **format: str) -> str:
        asset = build_raw_dataset(LINEAGE, [SourceConfig(path=path)], AlpacaFormat(**format))
        return asset.code_versions_by_key[LINEAGE.key("raw_dataset")] or ""

    assert len({version("a"), version("b"), version("a", output_column="answer")}) == 3
    assert version("a") == version("a", system="Be brief.")  # no column more: the same rows
