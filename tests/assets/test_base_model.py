import dagster as dg

from llm_assets.assets.base_model import SUPPORTED_ARCHITECTURE, TRAINED_SPECIAL_TOKENS, build_base_model
from llm_assets.assets.conventions import Lineage
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.training.base_model import BaseModelConfig

LINEAGE = Lineage("sql_demo", owners=("team:data",))
KEY = LINEAGE.key("base_model")


def materialize(directory, root):
    asset = build_base_model(LINEAGE, BaseModelConfig(directory=directory))
    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([asset], instance=instance, resources={"store": ArtifactStore(root=str(root))})


def test_the_base_is_published_with_its_checks_and_its_numbers(tiny_base, tmp_path):
    result = materialize(tiny_base, tmp_path)
    (event,) = result.asset_materializations_for_node("sql_demo__base_model")
    assert event.metadata["vocabulary_size"].value == 512
    assert event.metadata["architecture"].value == "LlamaForCausalLM"
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert checks == {TRAINED_SPECIAL_TOKENS: True, SUPPORTED_ARCHITECTURE: True}


def test_the_same_source_gives_the_same_data_version(tiny_base, tmp_path):
    first, second = (
        materialize(tiny_base, tmp_path / name).asset_materializations_for_node("sql_demo__base_model")[0].metadata
        for name in ("one", "two")
    )
    assert first["fingerprint"].value == second["fingerprint"].value
