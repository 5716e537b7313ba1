"""The command line: what it prints, and the exit code a script can rely on."""

import pytest

from llm_assets.interface.console import main

LINEAGE = """\
type: llm_assets.components.lineage.LLMLineage
attributes:
  model: support
  sources: [{ path: "{{ env('ROWS', 'rows.jsonl') }}" }]
  format: { type: openai_messages }
  base_model: qwen2_5_7b_instruct
  training: { method: METHOD }
  quantization: [{ scheme: w4a16 }, { scheme: nvfp4 }]
"""


def test_models_lists_the_catalog(capsys):
    assert main(["models", "qwen2_5_3b"]) == 0
    told = capsys.readouterr().out
    assert "qwen2_5_3b_instruct" in told and "Qwen/Qwen2.5-3B-Instruct@aa8e72537993" in told and "3.09B" in told
    assert main(["models", "gpt5"]) == 1


def test_info_shows_what_is_registered(registered, capsys):
    assert main(["info", f"{registered}@champion"]) == 0
    assert "prod.sql.orders version 1 (champion)" in capsys.readouterr().out
    assert main(["info", "nobody"]) == 2
    assert "Registered: prod.sql.orders" in capsys.readouterr().err


def test_plan_shows_training_serving_and_what_to_request(tmp_path, capsys):
    (tmp_path / "defs.yaml").write_text(LINEAGE.replace("METHOD", "qlora"))
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "a100_80gb"]) == 0
    told = capsys.readouterr().out
    assert "7.62B parameters, on A100 (80 GiB)" in told
    assert "packs per forward pass" in told
    lines = {line.split()[0]: line for line in told.splitlines() if line.strip()}
    assert "15.2 GB" in lines["merged"] and "fits" in lines["merged"]
    assert "nvfp4 needs compute capability 10.0" in lines["nvfp4"]
    assert "1 x A100" in lines["serving"]


def test_plan_says_when_training_does_not_fit_and_what_to_do(tmp_path, capsys):
    (tmp_path / "defs.yaml").write_text(LINEAGE.replace("METHOD", "full"))
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "L4"]) == 0
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lineage", "told"), [("nothing", "sql_demo, sql_genie"), ("gone/defs.yaml", "gone/defs.yaml does not exist")]
)
def test_plan_of_an_unknown_lineage_names_the_known_ones(lineage, told, capsys):
    assert main(["plan", lineage, "--gpu", "H200"]) == 2
    assert told in capsys.readouterr().err


def test_plan_tells_every_wrong_value_of_a_lineage(tmp_path, capsys):
    (tmp_path / "defs.yaml").write_text(LINEAGE.replace("METHOD", "magic"))
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "H200"]) == 2
    assert "'magic'" in capsys.readouterr().err


def test_doctor_passes_where_everything_is_there(home, capsys, engine_python, monkeypatch):
    monkeypatch.setenv("LLM_ASSETS_ENGINE_PYTHON", engine_python)
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "Nothing is missing" in told
    for subject in ("training", "vllm", "llama.cpp", "memory", "disk", "mlflow", "dagster", "schemes"):
        assert subject in told
    assert "gguf_q8_0" in told
    assert not home.exists()


def test_doctor_names_what_is_missing_with_its_remedy(home, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_ASSETS_ENGINE_PYTHON", str(tmp_path / "nowhere/python"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "gone"))
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "3 missing" in told
    for remedy in ("Run `make engine-env`", "correct MLFLOW_TRACKING_URI", "Create it, or unset the variable"):
        assert remedy in told
