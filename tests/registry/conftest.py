from pathlib import Path

import pytest
from published_lineage import PublishedLineage, empty_database, publish_lineage, write_evaluation

from llm_assets.registry.contents import VersionSources
from llm_assets.registry.tracking_store import TrackingStore


@pytest.fixture(scope="session")
def lineage(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    """Published directories of a tiny lineage."""
    return publish_lineage(tiny_base, tmp_path_factory.mktemp("lineage"))


@pytest.fixture
def store(tmp_path: Path) -> TrackingStore:
    """A fresh tracking store on local files."""
    (tmp_path / "mlflow.db").write_bytes(empty_database())
    return TrackingStore(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "mlartifacts"))


@pytest.fixture
def sources(lineage: PublishedLineage, tmp_path: Path) -> VersionSources:
    """What a version is made of, with an evaluation of its own."""
    return VersionSources(
        model="orders",
        merged=lineage.merged,
        variants={"gguf_q8_0": lineage.variant},
        adapter=lineage.adapter,
        tokenized=lineage.tokenized,
        evaluation=write_evaluation(tmp_path / "evaluation", [1] * 18 + [0] * 2),
    )
