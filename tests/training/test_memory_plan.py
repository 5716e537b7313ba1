"""The memory plan against what PyTorch really holds: weights, trained values, tensors saved for the backward pass."""

import pytest
import torch

from llm_assets.training import trained_weights
from llm_assets.training.adapted_model import add_adapter, load_base, unwrapped
from llm_assets.training.attention import packed_attention
from llm_assets.training.memory_need import logit_chunk_labels
from llm_assets.training.memory_need import trained_values as planned_values
from llm_assets.training.memory_plan import (
    GIB,
    MemoryTooSmall,
    batches,
    plan_memory,
    plan_of,
    smaller_plans,
)
from llm_assets.training.model_shape import ModelShape, ShapeUnknown
from llm_assets.training.training_config import TrainingConfig

LLAMA_8B = ModelShape(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, vocabulary=128256)
METHODS = {
    "qlora": {"method": "qlora"},
    "two targets": {"method": "lora", "target_modules": ("q_proj", "v_proj")},
    "dora": {"method": "lora", "use_dora": True},
    "float32": {"method": "lora", "compute_dtype": "float32"},
    "full": {"method": "full"},
}


def planned(config, **changes):
    options = {"pack_length_tokens": 2048, "device_memory_bytes": 80 * GIB, "device": "cuda", **changes}
    return plan_memory(LLAMA_8B, config, **options)


def bytes_saved_for_backward(model, config, tokens):
    """Bytes of distinct storages autograd keeps in one forward pass, weights apart."""
    held = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    half = torch.autocast("cpu", torch.bfloat16, enabled=config.compute_dtype == "bfloat16")
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    ids = torch.arange(tokens)[None] % 500
    with hooks, half, packed_attention(unwrapped(model), "sdpa"):
        model(input_ids=ids, position_ids=torch.arange(tokens)[None], logits_to_keep=1, use_cache=False)
    return sum(size for size, _ in saved.values())


@pytest.mark.parametrize("name", METHODS)
def test_planned_activations_are_those_autograd_saves(tiny_base, name):
    config = TrainingConfig.model_validate({"rank": 8, "batch_packs": 1, "accumulation_steps": 1, **METHODS[name]})
    model = add_adapter(load_base(tiny_base, config.method, config.compute_dtype, device="cpu"), config).train()
    shape = ModelShape.read(tiny_base)
    found, more = (bytes_saved_for_backward(model, config, tokens) for tokens in (256, 512))
    plans = [plan_of(shape, config, tokens, 1, False, GIB, "cpu") for tokens in (256, 512)]
    gradients = 256 * (3 * (4 if name == "float32" else 2) * shape.intermediate + 8 * shape.hidden)
    first_norm = 0 if name == "full" else 256 * 4 * shape.hidden  # its input is a frozen embedding: nothing to save
    planned_growth = plans[1].activations - plans[0].activations - gradients - first_norm
    assert more - found == pytest.approx(planned_growth, rel=0.05)


def test_planned_weights_and_constants_are_those_of_the_loaded_model(tiny_base):
    model = load_base(tiny_base, "qlora", "bfloat16", device="cpu")
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    states = [m.weight.quant_state for m in model.modules() if type(m).__name__ == "Linear4bit"]
    constants = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    plan = plan_of(ModelShape.read(tiny_base), TrainingConfig(), 256, 1, False, GIB, "cpu")
    dequantized_layer = 2 * 128 * 256
    assert plan.weights - dequantized_layer == pytest.approx(held, rel=0.001)
    assert plan.quantization_constants == pytest.approx(constants, rel=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora"},
        {"method": "lora", "use_dora": True, "target_modules": ("q_proj", "down_proj")},
        {"method": "lora", "trainable_tokens": ("<|im_start|>", "<|im_end|>")},
        {"method": "lora", "modules_to_save": ("embed_tokens",)},
        {"method": "full"},
    ],
)
def test_planned_values_are_those_that_are_trained(tiny_base, changes):
    config = TrainingConfig.model_validate({"rank": 4, **changes})
    ids = (1, 2) if config.trainable_tokens else ()
    model = add_adapter(load_base(tiny_base, config.method, "bfloat16", device="cpu"), config, ids)
    assert planned_values(ModelShape.read(tiny_base), config) == trained_weights.count(model)


def test_an_8b_model_in_four_bit_weighs_what_its_layers_do():
    linear = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    assert LLAMA_8B.linear_values == linear == 6_979_321_856
    plan = planned(TrainingConfig())
    vocabulary, layer = 2 * 2 * 128256 * 4096, 2 * 4096 * 14336
    assert plan.weights == pytest.approx(linear / 2 + vocabulary + layer, rel=1e-3)
    assert plan.quantization_constants * 8 / linear == pytest.approx(0.127, abs=1e-3)  # bits a value: QLoRA, section 3


def test_a_step_keeps_its_packs_however_it_is_cut():
    config = TrainingConfig(accumulation_steps=12)
    assert [micro for micro, recompute in batches(config) if not recompute] == [12, 6, 4, 3, 2, 1]
    for plan in (planned(config), *(planned(config, device_memory_bytes=size * GIB) for size in (16, 24, 48))):
        assert plan.micro_batch_packs * plan.accumulation_steps == 12


def test_activations_are_recomputed_only_where_keeping_them_does_not_fit():
    large, small = planned(TrainingConfig()), planned(TrainingConfig(), device_memory_bytes=16 * GIB)
    assert not large.gradient_checkpointing
    assert small.gradient_checkpointing
    assert small.activations < large.activations
    assert not planned(TrainingConfig(gradient_checkpointing=False)).gradient_checkpointing


def test_the_largest_forward_pass_that_fits_is_chosen():
    plan = planned(TrainingConfig(accumulation_steps=16))
    larger = plan_of(LLAMA_8B, TrainingConfig(), 2048, 2 * plan.micro_batch_packs, False, 80 * GIB)
    assert plan.fits
    assert not larger.fits


def test_a_given_batch_is_an_upper_bound():
    assert planned(TrainingConfig(batch_packs=2, accumulation_steps=8)).micro_batch_packs == 2


def test_what_fits_nowhere_is_refused_with_what_it_needs_and_the_ways_out():
    with pytest.raises(MemoryTooSmall, match=r"full needs \d+\.\d GiB .*has 24\.0 GiB.*set training\.method qlora"):
        planned(TrainingConfig(method="full"), device_memory_bytes=24 * GIB)


def test_smaller_plans_descend_and_keep_the_step():
    plan = planned(TrainingConfig(accumulation_steps=4))
    ladder = [plan, *smaller_plans(plan, LLAMA_8B, TrainingConfig(accumulation_steps=4), pack_length_tokens=2048)]
    sizes = [step.total_bytes for step in ladder]
    assert sizes == sorted(sizes, reverse=True)
    assert ladder[-1].gradient_checkpointing
    assert ladder[-1].micro_batch_packs == 1


def test_a_block_mask_costs_the_square_of_the_tokens():
    def growth(attention):
        config = TrainingConfig(attention=attention)
        return [plan_of(LLAMA_8B, config, tokens, 1, False, 80 * GIB).activations for tokens in (4096, 8192)]

    masked, varlen = growth("block_mask"), growth("varlen")
    assert masked[1] - varlen[1] == 4 * (masked[0] - varlen[0]) == 32 * 2 * 8192**2


def test_logits_are_bounded_whatever_the_labels():
    plan = planned(TrainingConfig(batch_packs=8, accumulation_steps=1))
    assert plan.logits <= 512 * 1024**2
    assert logit_chunk_labels(128256, 2) == 261


def test_the_table_adds_up(tiny_base):
    plan = planned(TrainingConfig())
    lines = plan.table().splitlines()
    parts = [float(line.split()[-2]) for line in lines[1:-2]]
    assert sum(parts) == pytest.approx(float(lines[-2].split()[-2]), abs=0.005)
    assert lines[-1] == "4 packs per forward pass x 2 passes per step, gradient checkpointing off, device 80.0 GiB"


def test_a_config_that_describes_no_decoder_is_refused_by_name():
    with pytest.raises(ShapeUnknown, match="model type mamba has no num_attention_heads, intermediate_size"):
        ModelShape.from_config({"model_type": "mamba", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 10})
