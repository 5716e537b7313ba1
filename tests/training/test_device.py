import pytest

from llm_assets.training.device import TrainingDevice, refuse_unsupported, this_device
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid

CPU = TrainingDevice("cpu", "x86_64", 2**34)
T4 = TrainingDevice("cuda", "Tesla T4", 2**34, 7.5)
P4 = TrainingDevice("cuda", "Quadro K2200", 2**32, 5.0)
H200 = TrainingDevice("cuda", "NVIDIA H200", 141 * 2**30, 9.0)


@pytest.mark.parametrize(
    ("changes", "device", "message"),
    [
        ({"compute_dtype": "float16"}, CPU, r"float16 does not train on a CPU\. Use bfloat16"),
        ({}, T4, r"bfloat16 needs compute capability 8\.0 \(Ampere\); this GPU is Tesla T4 \(7\.5\)\. Use float16"),
        ({"compute_dtype": "float32"}, P4, r"qlora needs compute capability 6\.0 .*Quadro K2200 \(5\.0\)\. Use lora"),
        ({"optimizer": "paged_adamw_8bit"}, CPU, r"here is no GPU\. Use adamw"),
        ({"liger": True}, CPU, r"training\.liger needs a CUDA device.*Set training\.liger false"),
        ({"compile": True}, CPU, r"training\.compile needs a CUDA device.*Set training\.compile false"),
        ({"liger": True}, H200, "needs the package liger-kernel"),
        ({"attention": "flash_attention_2"}, H200, r"needs the package flash-attn\. Install it, or use auto"),
        ({"report_to": ("mlflow", "nowhere")}, CPU, r"report_to names nowhere, not installed here.*any of: mlflow"),
    ],
)
def test_what_a_device_cannot_do_is_refused_with_the_value_and_the_remedy(changes, device, message):
    with pytest.raises(TrainingConfigInvalid, match=message):
        refuse_unsupported(TrainingConfig.model_validate(changes), device)


@pytest.mark.parametrize("device", [CPU, H200])
def test_the_defaults_train_on_a_cpu_and_on_a_current_gpu(device):
    refuse_unsupported(TrainingConfig(), device)


def test_an_older_gpu_trains_in_float16():
    refuse_unsupported(TrainingConfig(compute_dtype="float16"), T4)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 5060", None),
    ],
)
def test_the_peak_is_known_for_listed_cards_only(name, tflops):
    peak = TrainingDevice("cuda", name, 2**34, 9.0).peak_flops
    assert peak == (tflops and pytest.approx(tflops * 1e12))


def test_this_machine_has_memory():
    assert this_device().memory_bytes > 2**28
