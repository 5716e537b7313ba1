"""Every shipped YAML loads; a wrong one is refused at load with file, line, value and remedy."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import dagster as dg
import pytest
import yaml

from llm_assets.components.lineage import LineageConfig, LLMLineage
from llm_assets.components.reference import markdown
from llm_assets.definitions import defs

PROJECT = Path(__file__).parents[2]
SHIPPED = sorted((PROJECT / "llm_assets" / "defs").glob("*/defs.yaml"))
TABLE = [
    "raw_dataset",
    "chat_dataset",
    "tokenized_dataset",
    "base_model",
    "hpo_study",
    "lora_adapter",
    "merged_model",
    "evaluation",
    "registered_version",
    "champion",
    "inference_inputs",
    "inference_outputs",
    "token_usage",
]


def attributes(name: str) -> dict:
    return yaml.safe_load((PROJECT / "llm_assets" / "defs" / name / "defs.yaml").read_text())["attributes"]


# --- what ships ------------------------------------------------------------------------------------------------------


def test_all_shipped_lineages_load_together():
    assert [path.parent.name for path in SHIPPED] == ["sql_demo", "sql_genie"]
    dg.Definitions.validate_loadable(defs())


@pytest.mark.parametrize("name", [path.parent.name for path in SHIPPED])
def test_a_lineage_has_every_asset_of_the_table_and_one_per_variant(name):
    keys = {key.path[1:][0]: key for key in defs().resolve_asset_graph().get_all_asset_keys() if key.path[0] == name}
    variants = {
        key.path[2] for key in defs().resolve_asset_graph().get_all_asset_keys() if key.path[:2] == [name, "quantized"]
    }

    assert set(keys) == {*TABLE, "quantized"}
    assert variants == {entry["scheme"] for entry in attributes(name)["quantization"]}


def test_the_published_recipe_is_what_sql_genie_says():
    config = LineageConfig.model_validate(attributes("sql_genie"))
    training, variant = config.training, config.quantization[0]

    assert (training.rank, training.lora_alpha, training.dropout) == (128, 128, 0.0)
    assert len(training.target_modules) == 7
    assert (training.batch_packs, training.accumulation_steps, training.learning_rate) == (128, 2, 8e-4)
    assert (training.warmup_share, training.epochs, training.save_every_steps) == (0.05, 1, 200)
    assert config.tokenization.max_length_tokens == 1024
    assert (variant.scheme, variant.kv_cache, variant.calibration_rows) == ("nvfp4", "fp8", 128)


def test_the_mix_that_sql_genie_offers_is_valid_once_uncommented():
    text = (PROJECT / "llm_assets" / "defs" / "sql_genie" / "defs.yaml").read_text()
    config = LineageConfig.model_validate(yaml.safe_load(re.sub(r"(?m)^    # ", "    ", text))["attributes"])

    assert {s.name: s.first_rows for s in config.sources} == {
        "text_to_sql": 100_000,
        "finetome": 100_000,
        "ultrachat": 200_000,
    }
    assert [s.row_format.type for s in config.sources if s.row_format] == ["sharegpt", "openai_messages"]


def test_loading_the_definitions_imports_nothing_heavy():
    heavy = ["torch", "transformers", "peft", "mlflow", "datasets", "optuna", "llmcompressor", "kubernetes", "vllm"]
    code = (
        f"import sys\nfrom llm_assets.definitions import defs\ndefs()\nprint([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_ten_line_example_of_the_readme_is_a_valid_lineage():
    readme = (PROJECT / "README.md").read_text()
    example = yaml.safe_load(readme.split("```yaml\n")[1].split("```")[0])

    LineageConfig.model_validate(example["attributes"])
    assert len(example["attributes"]) <= 10


def test_the_reference_in_the_docs_is_what_the_schema_says():
    assert (PROJECT / "docs" / "lineage.md").read_text() == markdown(), "run `make docs`"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A code location with one good lineage and room for a bad one."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "little"\n'
    )
    definitions = (PROJECT / "llm_assets" / "definitions.py").read_text()
    for folder in ("", "defs", "defs/good", "defs/bad"):
        (tmp_path / "little" / folder).mkdir(exist_ok=True)
    (tmp_path / "little" / "__init__.py").write_text("")
    (tmp_path / "little" / "definitions.py").write_text(definitions)
    write(tmp_path, "good", MINIMAL.format(model="good"))
    return tmp_path


MINIMAL = """\
type: llm_assets.components.lineage.LLMLineage
attributes:
  model: {model}
  sources: [{{ path: rows.jsonl }}]
  format: {{ type: openai_messages }}
  base_model: {{ directory: models/base }}
"""


def write(project: Path, name: str, text: str) -> None:
    (project / "little" / "defs" / name / "defs.yaml").write_text(textwrap.dedent(text))


def load(project: Path) -> subprocess.CompletedProcess[str]:
    code = "from little.definitions import defs\ndefs()"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=project, capture_output=True, text=True, check=False
    )


def test_a_minimal_lineage_loads(project):
    assert load(project).returncode == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("  modle: x", ["modle", "Extra inputs are not permitted"]),
        ("  training: { rank: many }", ["rank", "many", "integer"]),
        ("  training: { learning_rate: 7 }", ["learning_rate", "less than or equal to 1"]),
        ("  training: { epochs: 2, max_steps: 10 }", ["epochs is 2", "Give one of them"]),
        ("  quantization: [{ scheme: int3 }]", ["scheme", "'w4a16'", "int3"]),
        ("  quantization: [{ scheme: w4a16 }, { scheme: w4a16 }]", ["w4a16 more than once", "own `name`"]),
        ("  hardware: { target: RTX 9999 }", ["RTX 9999", "RTX 4090"]),
        (
            "  quantization: [{ scheme: nvfp4 }]\n  hardware: { target: RTX A5000 }",
            ["nvfp4 needs compute capability 10.0", "RTX A5000 (8.6)", "Use w4a16"],
        ),
        ("  training: { learning_rate: 0.9 }", ["training.learning_rate is 0.9", "widen the range"]),
        ("  quantization: [{ scheme: w4a16 }]\n  registry: { variants: [w8] }", ["lists w8", "Choose from: w4a16"]),
        ("  automation: { nightly_cron: nightly }", ["'nightly'", "five cron fields"]),
        (
            "  inference: { inputs: 'q/{partition}.csv', partitions: { type: static, keys: [a] }, variant: w8 }",
            ["inference.variant is 'w8'", "Choose one of: merged"],
        ),
    ],
)
def test_a_wrong_value_is_refused_with_file_line_value_and_remedy(project, line, told):
    write(project, "bad", MINIMAL.format(model="bad") + line + "\n")
    done = load(project)

    assert done.returncode != 0
    assert "bad/defs.yaml" in done.stderr
    assert "defs.yaml:" in done.stderr
    for text in told:
        assert text in done.stderr


def test_a_missing_key_is_refused_by_name(project):
    write(project, "bad", MINIMAL.format(model="bad").replace("  format: { type: openai_messages }\n", ""))
    done = load(project)

    assert done.returncode != 0
    assert "bad/defs.yaml" in done.stderr
    assert "format" in done.stderr


def test_environment_templates_fill_text_fields(monkeypatch):
    monkeypatch.setenv("ROWS", "somewhere/*.parquet")
    written = {**attributes("sql_demo"), "sources": [{"path": "{{ env('ROWS') }}"}]}
    component = LLMLineage.load(LineageConfig.model_validate(written), dg.ComponentTree.for_test().load_context)

    assert component.config.sources[0].path == "somewhere/*.parquet"
