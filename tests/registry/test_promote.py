import dataclasses
from pathlib import Path

import pytest
from published_lineage import write_evaluation

from llm_assets.registry.contents import VersionSources
from llm_assets.registry.promote import aliases, current, point_challenger, promote
from llm_assets.registry.register import register_version
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import VersionUnknown, load_version


@pytest.fixture
def two_versions(store: TrackingStore, sources: VersionSources, tmp_path: Path) -> TrackingStore:
    for share in (18, 20):
        evaluation = write_evaluation(tmp_path / f"evaluation{share}", [1] * share + [0] * (20 - share))
        register_version("orders", dataclasses.replace(sources, evaluation=evaluation), store, {}, lambda _: None)
    return store


def test_the_version_an_alias_pointed_to_is_kept_on_record(two_versions: TrackingStore):
    assert promote("orders", "1", "champion", two_versions).previous_version is None
    assert promote("orders", "2", "champion", two_versions).previous_version == "1"
    assert current("orders", "champion", two_versions) == "2"
    assert load_version("orders", "champion", two_versions.tracking_uri).aliases == ("champion",)


def test_promoting_again_reports_the_same_previous_version(two_versions: TrackingStore):
    promote("orders", "1", "champion", two_versions)
    assert promote("orders", "2", "champion", two_versions) == promote("orders", "2", "champion", two_versions)


def test_going_back_is_one_call(two_versions: TrackingStore):
    for version in ("1", "2"):
        promote("orders", version, "champion", two_versions)
    assert promote("orders", "1", "champion", two_versions).previous_version == "2"
    assert current("orders", "champion", two_versions) == "1"


def test_an_unknown_version_moves_nothing(two_versions: TrackingStore):
    promote("orders", "1", "champion", two_versions)
    with pytest.raises(VersionUnknown, match="aliases: champion -> 1"):
        promote("orders", "9", "champion", two_versions)
    assert current("orders", "champion", two_versions) == "1"


def test_nothing_has_an_alias_before_it_exists(store: TrackingStore):
    assert current("orders", "champion", store) is None


def test_the_challenger_is_the_newest_version_that_is_not_in_use(two_versions: TrackingStore):
    promote("orders", "1", "champion", two_versions)
    point_challenger("orders", "1", "challenger", "champion", two_versions)
    assert aliases("orders", two_versions) == {"champion": "1"}
    point_challenger("orders", "2", "challenger", "champion", two_versions)
    assert aliases("orders", two_versions) == {"champion": "1", "challenger": "2"}
