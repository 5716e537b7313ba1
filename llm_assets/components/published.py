"""What a deployed lineage tells about itself: its jobs carry its configuration, so a caller can compare before it runs.

Passwords and signatures in URIs are left out: job metadata is shown to everybody who sees the UI.
"""

from typing import Any

import dagster as dg
from pydantic import BaseModel

from llm_assets.registry.tracking_store import redacted

LINEAGE_METADATA = "lineage"


def lineage_metadata(config: BaseModel) -> dict[str, dg.MetadataValue]:
    """A job's metadata: the whole configuration, every default included."""
    return {LINEAGE_METADATA: dg.MetadataValue.json(without_passwords(config.model_dump(mode="json")))}


def without_passwords(value: Any) -> Any:
    """The same data with user, password and the signature of a presigned link cut out of every URI."""
    if isinstance(value, dict):
        return {name: without_passwords(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_passwords(item) for item in value]
    if isinstance(value, str) and "://" in value:
        return redacted(value)
    return value
