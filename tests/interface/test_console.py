"""The command line: what it prints, and the exit code a script can rely on."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from llm_assets.interface.console import main
from llm_assets.interface.doctor import _dagster

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
    assert main(["models", "Qwen2.5-3B"]) == 0
    assert main(["models", "gpt5"]) == 1
    assert "No base model has 'gpt5' in its name" in capsys.readouterr().err


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
    assert "nvfp4" not in told.partition("GPUs to request")[2]


def test_plan_says_how_many_gpus_share_a_model_that_one_cannot_hold(tmp_path, capsys):
    lineage = LINEAGE.replace("METHOD", "qlora").replace("qwen2_5_7b_instruct", "llama3_3_70b_instruct")
    (tmp_path / "defs.yaml").write_text(lineage.replace("nvfp4", "gguf_q4_0"))
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "A10"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "fits on 8 x A10" in lines["merged"] and "fits on 2 x A10" in lines["w4a16"]
    assert "llama.cpp on the CPU, in 48.7 GB of main memory" in lines["gguf_q4_0"]
    assert "every GPU holds the whole model" in lines["training"]  # which qlora cannot share


def test_plan_tells_hand_arithmetic_of_qlora_on_llama_8b(tmp_path, capsys):
    lineage = LINEAGE.replace("METHOD", "qlora").replace("qwen2_5_7b_instruct", "llama3_1_8b_instruct")
    (tmp_path / "defs.yaml").write_text(lineage)
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "A10"]) == 0
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line.strip()}
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    embeddings, norms = 2 * 128256 * 4096, 65 * 4096
    one_dequantized = 4096 * 14336 * 2  # bytes
    weights = linear / 2 + 2 * (embeddings + norms) + one_dequantized
    assert lines["weights"][1] == f"{weights / 2**30:.3f}"
    rank_16 = 16 * 32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert lines["adapter"][1] == f"{4 * rank_16 / 2**30:.3f}"
    assert lines["optimizer"][1] == f"{8 * rank_16 / 2**30:.3f}"


@pytest.mark.parametrize(
    ("text", "told"), [("a: [1", "while parsing"), (LINEAGE.replace(", 'rows.jsonl'", ""), "variable ROWS is not set")]
)
def test_plan_of_a_file_that_cannot_be_read_says_why(text, told, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ROWS", raising=False)
    (tmp_path / "defs.yaml").write_text(text)
    assert main(["plan", str(tmp_path / "defs.yaml"), "--gpu", "H200"]) == 2
    assert told in capsys.readouterr().err


def test_plan_for_an_unknown_gpu_lists_the_known_ones(capsys):
    assert main(["plan", "sql_genie", "--gpu", "A1000"]) == 2
    told = capsys.readouterr().err
    assert "--gpu 'A1000' is not a known GPU" in told and "hardware.target" not in told


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
    assert not home.exists()  # looking changes nothing


def test_doctor_asks_the_deployment_with_the_token_that_calls_use(home, monkeypatch):
    class Deployment(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.headers.get("Authorization") == "Bearer t" else 401)
            self.end_headers()

        def log_message(self, *arguments): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Deployment) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("LLM_ASSETS_DAGSTER_URL", f"http://127.0.0.1:{server.server_port}")
        states = []
        for token in ("", "t"):
            monkeypatch.setenv("LLM_ASSETS_DAGSTER_TOKEN", token)
            states.append([finding.state for finding in _dagster() if finding.subject == "deployed"])
        server.shutdown()
    assert states == [["missing"], ["ok"]]
