from pathlib import Path

import pytest
from published_lineage import PublishedLineage, publish_lineage


@pytest.fixture(scope="session")
def lineage(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    """Published directories of a tiny lineage."""
    return publish_lineage(tiny_base, tmp_path_factory.mktemp("lineage"))
