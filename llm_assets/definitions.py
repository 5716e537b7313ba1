"""The code location: every lineage and the runtime under ``llm_assets/defs``."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Load every lineage under ``llm_assets/defs``."""
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
