"""The quantized asset on published inputs: made, checked, refused, and the same again."""

import dagster as dg
import pytest

from llm_assets.assets.conventions import Lineage, materialized
from llm_assets.assets.quantized import LOADS, RECOVERY, build_quantized
from llm_assets.data.token_files import write_rows
from llm_assets.engine.job import EngineEnvironmentMissing, engine_python
from llm_assets.quantization import Hardware, HardwareConfig, QuantizationConfig
from llm_assets.resources.artifact_store import ArtifactStore
from llm_assets.resources.hardware import HardwareResource
from llm_assets.resources.worker import Worker

LINEAGE = Lineage("tiny")
CPU = Hardware(name="EPYC", device="cpu", memory_bytes=2**34)
QUICK = {"calibration_rows": 4, "recovery_rows": 8, "load_prompts": 2, "load_tokens": 4, "min_recovery": 0.5}


@pytest.fixture(scope="module")
def tokenized_rows(tiny_base):
    """Rows labelled with the tiny model's own predictions: it is right everywhere without any training."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="auto")
    rows = []
    for seed in range(8):
        ids = torch.randint(3, 379, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
        while len(ids) < 24:  # the model's own continuation, so that it predicts every label
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        labels = [-100] * 8 + ids[8:]
        rows.append({"row_id": f"row-{seed}", "input_ids": ids, "labels": labels, "prompt_tokens": 8})
    return rows


@pytest.fixture
def upstream(tiny_base, tokenized_rows):
    @dg.asset(key=LINEAGE.key("merged_model"))
    def merged_model(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        with store.staging() as staged:
            for path in tiny_base.iterdir():
                (staged / path.name).write_bytes(path.read_bytes())
            return materialized(store.publish(context.asset_key, staged), {})

    @dg.asset(key=LINEAGE.key("tokenized_dataset"))
    def tokenized_dataset(context: dg.AssetExecutionContext, store: ArtifactStore) -> dg.MaterializeResult:
        with store.staging() as staged:
            for split in ("train", "validation"):
                write_rows(staged, split, tokenized_rows)
            return materialized(store.publish(context.asset_key, staged), {})

    return [merged_model, tokenized_dataset]


@pytest.fixture
def on_a_cpu(monkeypatch):
    monkeypatch.setattr("llm_assets.resources.hardware.detect_hardware", lambda: CPU)


@pytest.fixture
def materialize(upstream, tmp_path):
    """Materialize one variant after its inputs, all in one run on one instance."""
    instance = dg.DagsterInstance.ephemeral()
    resources = {"store": ArtifactStore(root=str(tmp_path)), "worker": Worker(), "hardware": HardwareResource()}

    def run(target: str | None = None, **settings):
        variant = build_quantized(LINEAGE, QuantizationConfig(**QUICK | settings), HardwareConfig(target=target))
        return dg.materialize([*upstream, variant], instance=instance, resources=resources, raise_on_error=False)

    return run


def test_the_asset_shows_what_it_is_and_waits_for_the_gpu():
    spec = build_quantized(LINEAGE, QuantizationConfig(scheme="w4a16", name="small"), HardwareConfig())
    gguf = build_quantized(LINEAGE, QuantizationConfig(scheme="gguf_q8_0"), HardwareConfig())
    assert spec.key == dg.AssetKey(["tiny", "quantized", "small"])
    assert spec.group_names_by_key[spec.key] == "tiny/quantization"
    assert spec.op.pool == "gpu"
    assert {check.name: check.blocking for check in spec.check_specs} == {LOADS: True, RECOVERY: True}
    assert next(iter(gguf.specs)).kinds == {"pytorch", "gguf"}


def verdicts(result):
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_a_variant_for_another_gpu_is_made_here_and_says_that_its_engine_is_unproven(materialize, on_a_cpu):
    result = materialize(scheme="nvfp4", target="B200")
    assert result.success
    loads = verdicts(result)[LOADS]
    assert loads.passed
    assert "opened with transformers because vLLM's CPU build has no FP4 kernel" in loads.description
    metadata = result.asset_materializations_for_node("tiny__quantized__nvfp4")[0].metadata
    assert metadata["opened_with"].value == "transformers"
    assert metadata["compression_ratio"].value > 1.5
    assert 0.5 < metadata["recovery"].value <= 1.1
    assert {"recovery_low", "recovery_high", "loss_delta", "weight_bytes", "fingerprint", "answers"} <= set(metadata)


def test_making_a_variant_again_gives_the_same_data_version(materialize, on_a_cpu):
    versions = {
        materialize(scheme="nvfp4a16")
        .asset_materializations_for_node("tiny__quantized__nvfp4a16")[0]
        .tags["dagster/data_version"]
        for _ in range(2)
    }
    assert len(versions) == 1


def test_a_variant_below_its_floor_is_published_but_blocks(materialize, on_a_cpu):
    result = materialize(scheme="mxfp4", min_recovery=1.0)
    assert not result.success
    assert not verdicts(result)[RECOVERY].passed
    assert result.asset_materializations_for_node("tiny__quantized__mxfp4")


def test_an_unsupported_target_is_refused_before_any_work(materialize, on_a_cpu, tmp_path):
    result = materialize(scheme="nvfp4", target="RTX A5000")
    assert not result.success
    failure = result.failure_data_for_node("tiny__quantized__nvfp4")
    assert "nvfp4 needs compute capability 10.0 (Blackwell); this GPU is an RTX A5000 (8.6)" in str(failure.error)
    assert not (tmp_path / "tiny" / "quantized").exists()


@pytest.mark.parametrize("scheme", ["gguf_q8_0", "w4a16"])
def test_the_variants_own_engine_opens_it(scheme, materialize, on_a_cpu):
    try:
        engine_python()
    except EngineEnvironmentMissing as missing:
        pytest.skip(str(missing))
    result = materialize(scheme=scheme)
    assert result.success
    loads = verdicts(result)[LOADS]
    assert loads.passed
    assert loads.metadata["opened_by_its_engine"].value is True
    assert loads.metadata["answered"].value == 2
