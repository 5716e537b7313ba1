"""The Python interface on the materialized demo: a call that says what its YAML says finds everything made."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

SHIPPED = Path(__file__).parents[2] / "llm_assets" / "defs" / "sql_demo" / "defs.yaml"
CALL = """
import json, sys
from llm_assets import get_model_info, run_fine_tuning, run_inference

home, lineage = sys.argv[1], json.loads(sys.argv[2])
lines = []
tuned = run_fine_tuning(
    training_table_name={**lineage["sources"][0], "path": f"{home}/sql_demo/rows/*.parquet"},
    model_name="sql_demo",
    base_model="llm_assets.demo.base_model:build",
    data_config={name: lineage[name] for name in ("format", "curation", "split", "tokenization")},
    training_config=lineage["training"],
    **{name: lineage[name] for name in ("owners", "study", "quantization", "evaluation")},
    log=lines.append,
)
info = get_model_info("sql_demo")
asked = run_inference(
    input_source=f"{home}/sql_demo/questions/batch_00.parquet",
    model_name="sql_demo",
    variant="gguf_q8_0",
    output_table="asked.parquet",
    log=lines.append,
)
print(json.dumps({
    "version": tuned.model_version,
    "evaluation_loss": tuned.evaluation_loss,
    "made": [line[2:] for line in lines if line.startswith("▶")],
    "info": [info.version, *info.variants],
    "rows": [asked.rows, asked.failed_rows],
    "max_new_tokens": [asked.value("max_new_tokens"), asked.origin("max_new_tokens")],
}))
"""


@pytest.fixture(scope="module")
def told(demo) -> dict:
    lineage = json.dumps(yaml.safe_load(SHIPPED.read_text())["attributes"])
    arguments = [demo.environment["LLM_ASSETS_HOME"], lineage]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CALL, *arguments],
        cwd=demo.directory,
        env=demo.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_same_lineage_by_arguments_is_only_read_again(told, demo):
    registered = json.loads(
        next(demo.directory.glob(".llm_assets/artifacts/sql_demo/champion/*/champion.json")).read_text()
    )
    assert told["made"] == ["sql_demo/raw_dataset"]
    assert told["version"] == registered["version"]
    assert told["evaluation_loss"] > 0


def test_the_registered_version_is_told_and_answers_a_file(told, demo):
    assert told["info"] == [told["version"], "merged", "fp8_dynamic", "gguf_q8_0", "w4a16"]
    assert told["max_new_tokens"] == [96, "registered version"]
    answers = pq.read_table(demo.directory / "asked.parquet")
    assert told["rows"] == [answers.num_rows, 0]
    assert all("SELECT" in text for text in answers["completion"].to_pylist())
