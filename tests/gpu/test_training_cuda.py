"""What training does on a CUDA device alone: its kernels, its memory, and running out of it."""

from pathlib import Path

import pytest
import torch
from tokenized_by_hand import write_dataset

from llm_assets.training.attention import _one_by_one, _one_kernel
from llm_assets.training.trainer import train_adapter
from llm_assets.training.training_config import TrainingConfig

pytestmark = pytest.mark.gpu
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "head_dim": 64,
}


@pytest.fixture(scope="module")
def wide_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama wide enough that its activations outweigh what a plan leaves out."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("wide_base")
    config = AutoConfig.from_pretrained(tiny_base)
    config.update({**WIDE, "num_key_value_heads": 8, "max_position_embeddings": 4096})
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(directory)
    return directory


@pytest.fixture
def train(wide_base, tmp_path_factory):
    dataset = write_dataset(wide_base, tmp_path_factory.mktemp("tokenized"), train=512)

    def run(**changes):
        out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
        settings = {"rank": 16, "learning_rate": 1e-3, "max_steps": 3, "evaluation_rows": 8, **changes}
        config = TrainingConfig.model_validate({"accumulation_steps": 32, "evaluate_every_steps": 99, **settings})
        said: list[str] = []
        return train_adapter(wide_base, dataset, out, work, config, log=said.append), said

    return run


@pytest.mark.parametrize("kv_heads", [8, 2])
def test_the_kernel_over_all_documents_equals_attention_in_each(kv_heads):
    torch.manual_seed(0)
    borders = torch.tensor([0, 37, 38, 200, 256], dtype=torch.int32, device="cuda")

    def draw(heads):
        return torch.randn(1, heads, 256, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    inputs = draw(8), draw(kv_heads), draw(kv_heads)
    together = _one_kernel(*inputs, borders, 162, None)
    found = torch.autograd.grad(together.float().square().sum(), inputs)
    apart = _one_by_one(*inputs, borders, 0.0, None)
    expected = torch.autograd.grad(apart.float().square().sum(), inputs)
    torch.testing.assert_close(together, apart, rtol=2e-2, atol=2e-2)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).float().norm() / other.float().norm()) < 2e-2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "lora"},
        {"method": "full"},
        {"gradient_checkpointing": True},
        {"use_dora": True, "method": "lora"},
    ],
)
def test_the_planned_memory_is_the_measured_peak_within_15_percent(train, changes):
    report, _ = train(**changes)
    assert report.measured_memory_bytes == pytest.approx(report.plan.tensor_bytes, rel=0.15)


def test_a_device_that_runs_full_in_a_step_goes_on_in_smaller_passes(train):
    whole, _ = train(method="lora", attention="varlen")
    small, _ = train(method="lora", attention="varlen", batch_packs=4, accumulation_steps=8)
    limit = (whole.measured_memory_bytes + small.measured_memory_bytes) // 2
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        cut, said = train(method="lora", attention="varlen")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("was out of memory with 32 packs" in line for line in said)
    assert cut.plan.micro_batch_packs < 32
    assert cut.final_loss == pytest.approx(whole.final_loss, rel=1e-2)


def test_pages_of_the_optimiser_move_to_the_host(train):
    report, _ = train(method="full", optimizer="paged_adamw_8bit")
    assert report.evaluation_loss < report.base_evaluation_loss


def test_a_compiled_model_learns_the_same(train):
    plain, _ = train(method="lora")
    compiled, _ = train(method="lora", compile=True)
    assert compiled.final_loss == pytest.approx(plain.final_loss, rel=2e-2)


def test_fused_kernels_learn_the_same(train):
    pytest.importorskip("liger_kernel")
    plain, _ = train(method="lora")
    fused, _ = train(method="lora", liger=True)
    assert fused.final_loss == pytest.approx(plain.final_loss, rel=2e-2)


def test_the_share_of_a_known_peak_is_reported(train):
    report, _ = train()
    if report.model_flops_share is None:
        pytest.skip("this card's peak is not in the table")
    assert 0 < report.model_flops_share < 1
