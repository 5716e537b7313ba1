"""A home of its own for every test, and a small model registered once for the session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_lineage import QUESTIONS, empty_database, publish_lineage, write_evaluation

from llm_assets.core import CheckResult
from llm_assets.registry.asking import Served
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.evidence import Evidence, write_evidence
from llm_assets.registry.promote import promote
from llm_assets.registry.register import register_version
from llm_assets.registry.tracking_store import TrackingStore

NAME = "prod.sql.orders"
VARIABLES = (
    "DAGSTER_HOME", "LLM_ASSETS_DAGSTER_URL", "LLM_ASSETS_DAGSTER_TOKEN", "LLM_ASSETS_CATALOGS", "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty LLM_ASSETS_HOME, with nothing of the developer's environment in sight."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLM_ASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "home"
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow's client writes it into the process


@pytest.fixture(scope="session")
def registry(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrackingStore:
    """A registry with one version of a tiny text-to-SQL model, its GGUF variant, and the champion's alias."""
    root = tmp_path_factory.mktemp("registry")
    (root / "mlflow.db").write_bytes(empty_database())
    store = TrackingStore(f"sqlite:///{root / 'mlflow.db'}", str(root / "mlartifacts"))
    lineage = publish_lineage(tiny_base, root / "lineage")
    sources = VersionSources(
        model="orders",
        merged=lineage.merged,
        variants={"gguf_q8_0": lineage.variant},
        adapter=lineage.adapter,
        tokenized=lineage.tokenized,
        evaluation=write_evaluation(root / "evaluation", [1] * 18 + [0] * 2),
        chat=lineage.chat,
        served=Served(row_format={"type": "text_to_sql", "keep_columns": []}, base="Qwen/Qwen2.5-3B-Instruct"),
    )
    register_version(NAME, sources, store, {"dagster.run_id": "run-7"}, lambda _: None)
    write_evidence(store, NAME, "1", Evidence.of(CheckResult(True, "the first"), None, [], {}))
    promote(NAME, "1", "champion", store)
    return store


@pytest.fixture
def registered(registry: TrackingStore, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The registered name, with the environment pointing to its registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking_uri)
    return NAME


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six questions as a Parquet file."""
    rows = [{"sql_context": "create table orders (id integer)", "sql_prompt": question} for question in QUESTIONS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "questions.parquet")
    return tmp_path / "questions.parquet"


@pytest.fixture(scope="session")
def engine_python() -> str:
    """The engine environment's Python, as the project finds it."""
    from llm_assets.engine.job import engine_python

    return str(engine_python())
