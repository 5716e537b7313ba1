"""A prompt of the registry is resolved once, its version recorded, and inference asks in that version."""

import json
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
from published_lineage import empty_database, standing_in

from llm_assets.assets.chat_dataset import build_chat_dataset
from llm_assets.assets.conventions import Lineage
from llm_assets.assets.inference_inputs import build_inference_inputs
from llm_assets.assets.raw_dataset import build_raw_dataset
from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.formats import TemplateFormat
from llm_assets.inference import InferenceConfig
from llm_assets.registry.prompts import load_prompt, publish_prompt, read_prompt_record, write_prompt_record
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.tracking import MLflowTracking

LINEAGE = Lineage("helper")


def test_an_alias_means_one_version_from_the_conversations_to_the_questions_at_inference(tmp_path: Path):
    (tmp_path / "mlflow.db").write_bytes(empty_database())
    registry = TrackingStore(f"sqlite:///{tmp_path / 'mlflow.db'}", str(tmp_path / "mlartifacts"))
    publish_prompt("ask", "First: {{q}}", registry, alias="live")
    rows = [{"q": f"what is {n}?", "a": f"it is {n * n}"} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "p.jsonl").write_text('{"q": "what is new?"}\n')
    format = TemplateFormat(template_uri="prompts:/ask@live", completion="{a}")
    inference = InferenceConfig(inputs=f"{tmp_path}/{{partition}}.jsonl", partitions={"type": "static", "keys": ["p"]})
    assets = [
        build_raw_dataset(LINEAGE, [SourceConfig(path=str(tmp_path / "rows.json"))], format),
        build_chat_dataset(LINEAGE, format, CurationConfig(), SplitConfig(validation=0.1, test=0)),
        build_inference_inputs(LINEAGE, inference, format),
    ]
    store = ArtifactStore(root=str(tmp_path / "store"))
    resources = {"store": store, "tracking": MLflowTracking(tracking_uri=registry.tracking_uri)}
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        made = dg.materialize(assets[:2], instance=instance, resources=resources)
        publish_prompt("ask", "Second: {{q}}", registry, alias="live")
        dg.materialize(
            assets,
            selection=[LINEAGE.key("inference_inputs")],
            partition_key="p",
            instance=instance,
            resources=resources,
        )
        chat = store.open(instance, LINEAGE.key("chat_dataset")).path
        inputs = store.open(instance, LINEAGE.key("inference_inputs"), "p").path
        promoted = tmp_path / "champion"
        promoted.mkdir()
        write_prompt_record(promoted, [load_prompt("prompts:/ask@live", registry)])
        dg.materialize([standing_in(LINEAGE.key("champion"), promoted)], instance=instance, resources=resources)
        dg.materialize(
            assets,
            selection=[LINEAGE.key("inference_inputs")],
            partition_key="p",
            instance=instance,
            resources=resources,
        )
        asked_by_champion = store.open(instance, LINEAGE.key("inference_inputs"), "p").path

    metadata = made.get_asset_materialization_events()[-1].step_materialization_data.materialization.metadata
    assert metadata["prompt_ask"].value == "prompts:/ask/1"
    assert [prompt.uri for prompt in read_prompt_record(chat)] == ["prompts:/ask/1"]
    assert pq.read_table(chat / "train.parquet")["messages"][0].as_py()[0]["content"].startswith("First: what is ")
    assert pq.read_table(inputs / "rows.parquet")["messages"][0].as_py()[0]["content"] == "First: what is new?"
    messages = pq.read_table(asked_by_champion / "rows.parquet")["messages"][0].as_py()
    assert messages[0]["content"] == "Second: what is new?"  # a promoted version is asked in its own prompt
