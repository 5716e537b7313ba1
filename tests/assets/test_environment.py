"""From the champion over staging to prod in Dagster, each with a gate of its own, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from published_lineage import (
    PublishedLineage,
    empty_database,
    publish_lineage,
    standing_in,
    upstream_of_evaluation,
    write_evaluation,
)
from pydantic import ValidationError

from llm_assets.assets.champion import build_champion
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.environment import build_environments
from llm_assets.assets.registered_version import build_registered_version
from llm_assets.components.lineage import LineageConfig, LLMLineage
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import load_version
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.tracking import MLflowTracking
from llm_assets.resources.worker import Worker

LINEAGE = Lineage("orders")
PROD = "orders__environment__prod"


@pytest.fixture(scope="module")
def published(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> PublishedLineage:
    return publish_lineage(tiny_base, tmp_path_factory.mktemp("lineage"))


class Company:
    """A dev registry with staging in it, and a prod registry elsewhere."""

    def __init__(self, root: Path, published: PublishedLineage) -> None:
        self.root, self.published = root, published
        self.instance = dg.DagsterInstance.ephemeral()
        for place in ("dev", "prod"):
            (root / place).mkdir()
            (root / place / "mlflow.db").write_bytes(empty_database())
        dev, self.prod = (
            TrackingStore(f"sqlite:///{root / place / 'mlflow.db'}", str(root / place / "artifacts"))
            for place in ("dev", "prod")
        )
        self.tracking = MLflowTracking(tracking_uri=dev.tracking_uri, artifact_root=dev.artifact_root)
        self.config = RegistryConfig.model_validate(
            {
                "name": "dev.sql.orders",
                "environments": [
                    {"label": "staging", "name": "staging.sql.orders"},
                    {
                        "label": "prod",
                        "name": "prod.sql.orders",
                        "tracking_uri": self.prod.tracking_uri,
                        "artifact_root": self.prod.artifact_root,
                    },
                ],
            }
        )

    def release(self, matches: Sequence[int]) -> dg.ExecuteInProcessResult:
        evaluation = write_evaluation(self.root / f"evaluation{len(list(self.root.iterdir()))}", matches)
        assets = [
            *upstream_of_evaluation(LINEAGE, self.published),
            standing_in(LINEAGE.key("evaluation"), evaluation),
            build_registered_version(LINEAGE, self.config, ["gguf_q8_0"], ()),
            build_champion(LINEAGE, self.config, ()),
            *build_environments(LINEAGE, self.config),
        ]
        return self.run(assets)

    def run(self, assets: Sequence[dg.AssetsDefinition], **run_config: Any) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            assets,
            instance=self.instance,
            resources={"store": ArtifactStore(root=str(self.root / "artifacts")), "tracking": self.tracking},
            raise_on_error=False,
            run_config={"ops": run_config},
        )

    def in_prod(self) -> tuple[str, str]:
        version = load_version("prod.sql.orders", "champion", self.prod.tracking_uri)
        return version.version, version.require_promoted().kind


def test_a_release_reaches_prod_with_its_evidence_and_prod_goes_back_alone(published: PublishedLineage, tmp_path: Path):
    company = Company(tmp_path, published)
    assert company.release([1] * 15 + [0] * 5).success and company.in_prod() == ("1", "gate")
    assert company.release([1] * 20).success and company.in_prod() == ("2", "gate")
    served = load_version("prod.sql.orders", "champion", company.prod.tracking_uri)
    assert served.tags["llm_assets.copied_from"].startswith("models:/staging.sql.orders/2")
    assert '"passed": true' in served.tags["llm_assets.origin_gate"]

    prod = build_environments(LINEAGE, company.config)[1]
    back = company.run([prod], **{PROD: {"config": {"version": 1}}})
    assert back.success and company.in_prod() == ("1", "rollback")
    (event,) = back.asset_materializations_for_node(PROD)
    assert event.metadata["decision"].value == "version 1 rolled back"
    assert [row.data["gate"] for row in event.metadata["versions"].value.records] == [
        "rolled back to 1",
        "in use again",
    ]

    again = company.run([prod])
    assert again.success and company.in_prod() == ("1", "rollback")
    (check,) = again.get_asset_check_evaluations()
    assert not check.passed and "run config" in (check.description or "")


def asset_graph(config: LineageConfig) -> Any:
    resources = {
        "store": ArtifactStore(root="unused"),
        "tracking": MLflowTracking(),
        "worker": Worker(),
        "hardware": HardwareResource(),
    }
    return dg.component_defs(component=LLMLineage(config), resources=resources).resolve_asset_graph()


def test_in_a_lineage_environments_and_the_hub_wait_for_a_person_unless_told_otherwise():
    blocks = {
        "model": "orders",
        "sources": [{"path": "rows.csv"}],
        "format": {"type": "text_to_sql"},
        "base_model": {"builder": "llm_assets.demo.base_model:build"},
    }
    registry = {
        "environments": [
            {"label": "staging", "name": "staging_orders", "automatic": True},
            {"label": "prod", "name": "prod_orders"},
        ],
        "hub": {"repo": "acme/orders"},
    }
    config = LineageConfig.model_validate({**blocks, "registry": registry})
    graph = asset_graph(config)
    staging, prod, hub = (
        graph.get(LINEAGE.key(*path))
        for path in (("environment", "staging"), ("environment", "prod"), ("hub_repositories",))
    )
    assert staging.automation_condition and not prod.automation_condition and not hub.automation_condition
    assert prod.parent_keys == {staging.key} and staging.parent_keys == hub.parent_keys == {LINEAGE.key("champion")}
    plain = asset_graph(LineageConfig.model_validate(blocks))
    assert not {"environment", "hub_repositories"} & {key.path[1] for key in plain.get_all_asset_keys()}
    with pytest.raises(ValidationError, match="takes sql_context, sql_prompt"):
        LineageConfig.model_validate({**blocks, "registry": {"input_schema": {"question": "string"}}})
