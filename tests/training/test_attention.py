import pytest

from llm_assets.training.adapted_model import add_adapter, load_base
from llm_assets.training.attention import (
    VARLEN,
    _has_kernel,
    choose_attention,
    has_sliding_window,
    packed_attention,
    register_varlen,
)
from llm_assets.training.isolation import (
    Isolation,
    PackIsolationBroken,
    check_isolation,
    measure_isolation,
    require_isolation,
)
from llm_assets.training.packs import read_rows
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid

LEAKY = "test_leaky"


@pytest.fixture(scope="module")
def model(tiny_base):
    return load_base(tiny_base, "lora", "float32", device="cpu")


@pytest.fixture(scope="module")
def rows(dataset):
    return read_rows(dataset, "validation", 3)


@pytest.fixture(scope="module")
def leaky():
    """Causal attention over the whole row: what an all-ones mask does to packed documents."""
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    def attend(module, query, key, value, attention_mask, **_):
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return mixed.transpose(1, 2).contiguous(), None

    AttentionInterface.register(LEAKY, attend)
    AttentionMaskInterface.register(LEAKY, lambda *args, **kwargs: None)
    return LEAKY


def test_packed_documents_under_varlen_are_bit_equal_to_documents_alone(model, rows):
    register_varlen()
    assert measure_isolation(model, VARLEN, rows, 512) == Isolation(leak=0.0, difference=0.0, documents=3)


def test_packed_documents_under_a_block_mask_do_not_leak(model, rows):
    measured = measure_isolation(model, "sdpa", rows, 512)
    assert measured.leak == 0
    assert measured.difference < 1e-5


def test_four_bit_weights_in_bfloat16_pass_the_isolation_check(tiny_base, rows):
    quantized = load_base(tiny_base, "qlora", "bfloat16", device="cpu")
    register_varlen()
    assert check_isolation(measure_isolation(quantized, VARLEN, rows, 512)).passed


def test_float32_weights_under_bfloat16_autocast_attend_in_one_type(model, rows, monkeypatch):
    """What method full trains with: RoPE leaves queries and keys in float32, values come in bfloat16."""
    monkeypatch.setattr("llm_assets.training.attention.FLOAT32_MEAN_TOKENS", 0)  # as on a GPU and for long documents
    register_varlen()
    assert check_isolation(measure_isolation(model, VARLEN, rows, 512, "bfloat16")).passed


@pytest.mark.parametrize(("head", "has"), [(64, True), (100, False), (320, False)])
def test_the_kernel_is_called_for_the_heads_it_was_built_for(monkeypatch, head, has):
    import torch

    monkeypatch.setattr("llm_assets.training.attention._on_ampere", lambda: True)
    assert _has_kernel(torch.empty(1, 1, 1, head, dtype=torch.bfloat16)) is has


def test_attention_across_documents_is_refused_before_training(model, rows, leaky):
    measured = measure_isolation(model, leaky, rows, 512)
    assert not check_isolation(measured).passed
    with pytest.raises(PackIsolationBroken, match=r"test_leaky mixes packed documents.*Set training\.attention"):
        require_isolation(measured, leaky)


def test_an_all_ones_mask_in_the_batch_is_refused(model, rows, monkeypatch):
    import torch

    from llm_assets.training import packs

    lay = packs.lay_end_to_end
    monkeypatch.setattr(
        packs, "lay_end_to_end", lambda p: lay(p) | {"attention_mask": torch.ones_like(lay(p)["input_ids"])}
    )
    with pytest.raises(PackIsolationBroken, match="An attention mask or a key-value cache"):
        require_isolation(measure_isolation(model, "sdpa", rows, 512), "sdpa")


def test_a_key_value_cache_in_training_mode_is_refused(model, rows):
    model.config.use_cache = True
    try:
        with pytest.raises(PackIsolationBroken, match="use_cache"):
            require_isolation(measure_isolation(model.train(), "sdpa", rows, 512), "sdpa")
    finally:
        model.config.use_cache = False
        model.eval()


def test_dropout_is_off_only_while_isolation_is_measured(tiny_base, rows):
    config = TrainingConfig(method="lora", compute_dtype="float32", rank=4, dropout=0.5)
    adapted = add_adapter(load_base(tiny_base, "lora", "float32", device="cpu"), config).train()
    register_varlen()
    assert check_isolation(measure_isolation(adapted, VARLEN, rows, 512)).passed
    assert all(module.training for module in adapted.modules())


def test_a_leak_that_is_not_a_number_fails_the_check():
    assert not check_isolation(Isolation(leak=float("nan"), difference=0.0, documents=3)).passed


def test_the_model_gets_its_own_attention_back(model):
    own = model.config._attn_implementation
    register_varlen()
    with packed_attention(model, VARLEN):
        assert model.config._attn_implementation == VARLEN
    assert model.config._attn_implementation == own


def test_a_cpu_trains_with_varlen(model):
    assert choose_attention("auto", model) == VARLEN


def test_flash_attention_without_a_gpu_is_refused_with_the_remedy(model):
    with pytest.raises(TrainingConfigInvalid, match=r"needs a GPU.*the device is cpu\. Use auto"):
        choose_attention("flash_attention_2", model)


def test_sliding_windows_are_trained_with_a_block_mask(tiny_base):
    windowed = load_base(tiny_base, "lora", "float32", device="cpu")
    windowed.config.layer_types = ["sliding_attention", "full_attention"]
    assert has_sliding_window(windowed.config)
    assert choose_attention("auto", windowed) == "sdpa"
    with pytest.raises(TrainingConfigInvalid, match="sliding-window layers"):
        choose_attention("varlen", windowed)
