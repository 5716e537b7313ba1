"""Names of tables in three parts, as MLflow and Unity Catalog write them, resolved by a mapping of catalogs.

The mapping is a YAML file named by LLM_ASSETS_CATALOGS, not part of a lineage: the same `prod.sales.orders` is a
directory on a laptop and a warehouse in a cluster.

    prod: { database: "postgres://reader@warehouse/sales" }
    lake: { files: "s3://lake/{schema}/{table}/*.parquet" }
"""

import os
from pathlib import Path
from typing import Self

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.sources import SourceConfig

CATALOGS_VARIABLE = "LLM_ASSETS_CATALOGS"


class CatalogUnknown(LLMAssetsError):
    """A table's catalog is not in the mapping, or the mapping cannot be read."""


class CatalogConfig(Config):
    """What a catalog's tables are: those of a database, or directories of files."""

    database: str | None = Field(default=None, description="Database that holds the tables, as in a source.")
    files: str | None = Field(
        default=None, description="Path, glob or URL of a table's files, with {schema} and {table}."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.database is None) == (self.files is None):
            raise ValueError("a catalog is either a database or files with {schema} and {table}; give one of the two")
        if self.files is not None and ("{schema}" not in self.files or "{table}" not in self.files):
            raise ValueError(f"files '{self.files}' must contain {{schema}} and {{table}}")
        return self


def load_catalogs() -> dict[str, CatalogConfig]:
    """The catalogs of this environment; none where LLM_ASSETS_CATALOGS is not set.

    Raises:
        CatalogUnknown: the file cannot be read or is no mapping of catalogs.
    """
    path = os.environ.get(CATALOGS_VARIABLE)
    if not path:
        return {}
    try:
        written = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, CatalogConfig]).validate_python(written)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise CatalogUnknown(
            f"{CATALOGS_VARIABLE} names {path}, which is no mapping of catalogs: {error}. Write lines such as "
            f"'prod: {{ database: warehouse.duckdb }}'."
        ) from error


def from_catalog(source: SourceConfig) -> SourceConfig:
    """The source with its three-part table name turned into a database's table or files; others pass through.

    Raises:
        CatalogUnknown: lists the catalogs that are known.
    """
    if source.table is None or source.database is not None:
        return source
    catalogs = load_catalogs()
    catalog, schema, table = source.table.split(".")
    if catalog not in catalogs:
        raise CatalogUnknown(
            f"Source '{source.label}': {source.table} is in catalog '{catalog}'. Known catalogs: "
            f"{', '.join(catalogs) or f'none, {CATALOGS_VARIABLE} is not set'}. Correct the name, or add the catalog "
            f"to the file that {CATALOGS_VARIABLE} names."
        )
    found, label = catalogs[catalog], source.label
    if found.files is not None:
        files = found.files.replace("{schema}", schema).replace("{table}", table)
        return source.model_copy(update={"table": None, "path": files, "name": label})
    return source.model_copy(update={"database": found.database, "table": f"{schema}.{table}", "name": label})
