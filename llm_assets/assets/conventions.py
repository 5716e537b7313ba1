"""What every asset of a lineage shares: its key, group, code version, and how a library result becomes an event.

Asset modules know this file, the resources and the library, and never each other.
"""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
from pydantic import BaseModel

from llm_assets.core import CheckResult
from llm_assets.resources.artifact_store import FINGERPRINT_KEY, Artifact, digest, read_manifest


@dataclass(frozen=True)
class Lineage:
    """One model's slice of the asset graph: the name that prefixes every key, and who owns it."""

    model: str
    owners: tuple[str, ...] = ()

    def key(self, *path: str) -> dg.AssetKey:
        """Key of an asset of this lineage: `key("quantized", "w4a16")` is `<model>/quantized/w4a16`."""
        return dg.AssetKey([self.model, *path])

    def asset(
        self, *path: str, stage: str, kinds: Iterable[str], version: str, settings: Any = (), **options: Any
    ) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
        """The `@dg.asset` of this lineage, with a code version that covers the settings.

        Args:
            path: Asset key below the model.
            stage: Group below the model: data, training, quantization, evaluation, registry or inference.
            kinds: Icons of the node in the UI.
            version: Bump by hand when the asset's code makes other bytes from the same inputs.
            settings: Configs that decide the bytes; a change marks the asset stale.
            options: Whatever else `@dg.asset` takes: deps, check_specs, pool, partitions_def.
        """
        return dg.asset(
            key=self.key(*path),
            group_name=f"{self.model}/{stage}",
            kinds=set(kinds),
            owners=list(self.owners),
            tags={"model": self.model},
            code_version=f"{version}-{digest({'settings': plain(settings)})}",
            **options,
        )

    def blocking_checks(self, *path: str, names: Mapping[str, str]) -> list[dg.AssetCheckSpec]:
        """One blocking check per name, with its description, on the asset at `path`."""
        return [
            dg.AssetCheckSpec(name, asset=self.key(*path), blocking=True, description=description)
            for name, description in names.items()
        ]


def plain(value: Any) -> Any:
    """Configs as JSON-serialisable data, at any depth."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def materialized(
    artifact: Artifact,
    metadata: Mapping[str, Any],
    checks: Mapping[str, CheckResult] | None = None,
) -> dg.MaterializeResult:
    """The event of one published artifact: its fingerprint is the data version, its size a plot."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion(artifact.fingerprint),
        metadata={**artifact_metadata(artifact), **metadata},
        check_results=[check_event(name, result) for name, result in (checks or {}).items()],
    )


def artifact_metadata(artifact: Artifact) -> dict[str, Any]:
    """Where a published artifact is and how large; `fingerprint` is what the store looks it up by."""
    return {
        FINGERPRINT_KEY: artifact.fingerprint,
        "path": dg.MetadataValue.path(str(artifact.path)),
        "bytes": read_manifest(artifact.path)["bytes"],
    }


def check_event(name: str, result: CheckResult, asset_key: dg.AssetKey | None = None) -> dg.AssetCheckResult:
    """A library verdict as Dagster stores it: the summary as text, numbers as plots, rows as a table."""
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset_key,
        passed=result.passed,
        severity=dg.AssetCheckSeverity.WARN if result.warn_only else dg.AssetCheckSeverity.ERROR,
        description=result.summary,
        metadata={**dict(result.numbers), **({"rows": table(result.rows)} if result.rows else {})},
    )


def picture(png: bytes, alt: str) -> dg.MarkdownMetadataValue:
    """A PNG on the asset page, one click away: the UI folds Markdown of more than 1,000 characters."""
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def table(rows: Sequence[Mapping[str, Any]]) -> dg.TableMetadataValue:
    """Rows as a metadata table: columns are those of the first row, cells text or numbers, decimals to 5 digits."""
    columns = list(rows[0]) if rows else []
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in columns}) for row in rows]
    schema = dg.TableSchema([dg.TableColumn(name, "string") for name in columns])
    return dg.MetadataValue.table(records, schema=schema)


def column_schema(parquet: Path, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """The columns of a Parquet file with their types, as the asset page lists them."""
    fields = pq.read_schema(parquet)
    return dg.TableSchema([dg.TableColumn(f.name, str(f.type), descriptions.get(f.name)) for f in fields])


def _cell(value: Any) -> str | int | float | bool:
    if isinstance(value, float):
        return float(f"{value:.5g}")  # the artifact has every digit; a page is read
    if isinstance(value, (bool, int, float, str)):
        return value
    return "" if value is None else str(value)


def unmet_checks(instance: dg.DagsterInstance, required: Iterable[dg.AssetCheckKey]) -> list[str]:
    """Names of required checks whose latest evaluation did not pass or never ran; warnings do not count.

    A blocking check stops only its own run. Whatever registers, promotes or infers calls this on all it consumes.
    """
    return [key.to_user_string() for key in required if not _passed(instance, key)]


def _passed(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> bool:
    record = instance.get_latest_asset_check_evaluation_record(key)
    if record is None or record.status.value == "PLANNED":  # planned: its run died before the verdict
        return False
    if record.status.value == "SUCCEEDED":
        return True
    evaluation = record.event.dagster_event.event_specific_data  # type: ignore[union-attr]
    return evaluation.severity == dg.AssetCheckSeverity.WARN  # type: ignore[union-attr]
