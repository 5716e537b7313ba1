"""A call's arguments are a lineage: the same schema, the same refusals, told by the argument's name."""

from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from mlflow.types import ColSpec, Schema

from llm_assets import DataConfig, LoraConfig, TrainingConfig, run_fine_tuning
from llm_assets.components.lineage import LineageConfig
from llm_assets.interface.arguments import ArgumentsInvalid, lineage_blocks, lineage_config

PROJECT = Path(__file__).parents[2]


def lineage(**arguments):
    blocks = {
        name: value for name, value in arguments.items() if name in LineageConfig.model_fields and name != "base_model"
    }
    named = {"training_table_name": "rows.jsonl", "model_name": "text2sql", "base_model": "qwen2_5_3b_instruct"}
    named |= {name: value for name, value in arguments.items() if name not in blocks}
    return lineage_config(lineage_blocks(**named, blocks=blocks))


def test_the_call_of_a_toolkit_user_is_a_lineage():
    config = lineage(
        training_table_name="prod.sql.examples",
        model_name="prod.sql.text2sql",
        data_config=DataConfig(prompt_registry_name="text2sql", prompt_alias="production", completion_column="sql"),
        lora_config=LoraConfig(rank=8, dropout=0.1),
        training_config=TrainingConfig(epochs=1, learning_rate=0.004),
        input_schema={"question": "string"},
        output_schema={"answer": "string"},
    )
    assert config.model == "text2sql"
    assert config.registry.registered_name(config.model) == "prod.sql.text2sql"
    assert config.sources[0].table == "prod.sql.examples"
    assert config.base_model.hub == "Qwen/Qwen2.5-3B-Instruct"
    assert config.format.template_uri == "prompts:/text2sql@production"
    assert config.format.completion == "{sql}"
    assert (config.training.rank, config.training.dropout, config.training.learning_rate) == (8, 0.1, 0.004)
    assert config.training.epochs == 1
    assert (config.registry.input_schema, config.registry.output_schema) == (
        {"question": "string"},
        {"answer": "string"},
    )
    assert config.study.trials == 1


def test_what_a_call_does_not_say_is_what_the_yaml_defaults_to():
    config = lineage()
    same = {"model": "text2sql", "sources": [{"path": "rows.jsonl"}], "format": {"type": "auto"}}
    written = LineageConfig.model_validate({**same, "base_model": {"catalog": "qwen2_5_3b_instruct"}})
    assert config.model_copy(update={"study": written.study}) == written


def test_every_block_of_the_yaml_may_be_given():
    shipped = yaml.safe_load((PROJECT / "llm_assets/defs/sql_demo/defs.yaml").read_text())["attributes"]
    blocks = {name: shipped[name] for name in ("owners", "study", "quantization", "evaluation")}
    config = lineage(**blocks, training_config=shipped["training"], data_config={"format": shipped["format"]})
    written = LineageConfig.model_validate(shipped)
    for name in ("owners", "study", "quantization", "evaluation", "training", "format"):
        assert getattr(config, name) == getattr(written, name), name


@pytest.mark.parametrize(
    ("table", "source"),
    [
        ("rows/*.parquet", {"path": "rows/*.parquet"}),
        ("rows.train.jsonl", {"path": "rows.train.jsonl"}),
        ("s3://bucket/rows.csv", {"path": "s3://bucket/rows.csv"}),
        ("prod.sales.orders", {"table": "prod.sales.orders"}),
        ("w.duckdb::sales.orders", {"database": "w.duckdb", "table": "sales.orders"}),
    ],
)
def test_rows_are_named_by_file_table_or_url(table, source):
    config = lineage(training_table_name=table, data_config={"first_rows": 10})
    assert config.sources[0].model_dump(exclude_unset=True) == {**source, "first_rows": 10}


def test_a_base_model_may_be_a_directory_or_a_builder(tmp_path):
    assert lineage(base_model=str(tmp_path)).base_model.directory == tmp_path
    assert (
        lineage(base_model="llm_assets.demo.base_model:build").base_model.builder == "llm_assets.demo.base_model:build"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"training_config": {"rank": "many"}}, r"training_config.rank: .*valid integer.*'many'"),
        (
            {"lora_config": {"rank": 8}, "training_config": {"rank": 9}},
            "lora_config.rank is 8 and training_config.rank is 9",
        ),
        ({"lora_config": {"learning_rate": 1}}, r"lora_config.learning_rate: Extra inputs"),
        ({"base_model": "qwen25_3b"}, "Did you mean qwen2_5_3b_instruct"),
        ({"model_name": "prod.sql.7up"}, "model_name 'prod.sql.7up' gives the lineage no name"),
        ({"data_config": {"prompt_registry_name": "p", "format": {"type": "alpaca"}}}, "Give one of them"),
        ({"quantization": [{"scheme": "int3"}]}, r"quantization.0.scheme: .*'w4a16'.*'int3'"),
        ({"training_table_name": ""}, "training_table_name"),
        (
            {"training_table_name": pa.table({"prompt": ["a"]})},
            "is a Table in this process. Write it to a file or table",
        ),
        (
            {"data_config": {"prompt_registry_name": "p"}, "format": {"type": "alpaca"}},
            "data_config says .*p@production.* of format, and format is .*alpaca.*Give it once",
        ),
        (
            {"model_name": "a.b.m", "registry": {"name": "other"}},
            "model_name is 'a.b.m' and registry.name is 'other'. Give it once",
        ),
        (
            {"input_schema": {"prompt": "string"}, "registry": {"input_schema": {"q": "string"}}},
            "input_schema is .*'prompt'.* and registry.input_schema is .*'q'.*Give it once",
        ),
        ({"output_schema": ["text"]}, "output_schema: columns .* have no name or no type"),
        ({"training_config": {"epochs": 1, "max_steps": 2}}, "Give one of them"),
    ],
)
def test_a_wrong_argument_is_one_error_with_its_name_and_remedy(arguments, told):
    with pytest.raises(ArgumentsInvalid, match=told):
        lineage(**arguments)


def test_a_schema_is_the_same_however_it_is_written():
    for written in ({"text": "string"}, [{"name": "text", "type": "string"}], Schema([ColSpec("string", "text")])):
        same = {"output_schema": written, "blocks": {"registry": {"output_schema": written}}}
        blocks = lineage_blocks(training_table_name=None, model_name="m", base_model=None, **same)
        assert blocks["registry"] == {"output_schema": {"text": "string"}}


def test_several_wrong_arguments_are_told_at_once():
    with pytest.raises(ArgumentsInvalid) as refused:
        lineage(training_config={"rank": 0, "learning_rate": 7}, quantization=[{"scheme": "int3"}])
    assert len(str(refused.value).splitlines()) == 3


def test_nothing_is_begun_for_a_wrong_call(home):
    with pytest.raises(ArgumentsInvalid, match=r"no argument quantisation. Did you mean quantization\?"):
        run_fine_tuning(
            training_table_name="rows.jsonl", model_name="m", base_model="qwen3_8b", quantisation=[{"scheme": "w4a16"}]
        )
    with pytest.raises(ArgumentsInvalid, match="training_table_name and base_model missing"):
        run_fine_tuning(model_name="m")
    assert not home.exists()
