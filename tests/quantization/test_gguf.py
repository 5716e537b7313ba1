"""GGUF variants: read back by transformers, run by llama.cpp, and refused where a tensor or token would be lost."""

import json
import shutil

import numpy as np
import pytest

from llm_assets.engine.job import EngineEnvironmentMissing, engine_python
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, read_answers, write_requests
from llm_assets.quantization.calibration import held_out_rows, prompts
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.forward import answer_with_transformers
from llm_assets.quantization.gguf_model import (
    ArchitectureUnsupported,
    _permuted,
    _rope_factors,
    refuse_unfit_model,
    write_gguf,
)
from llm_assets.quantization.gguf_tokenizer import TokenizerUnsupported, pre_tokenizer_name
from llm_assets.quantization.quantize import gguf_file
from llm_assets.quantization.recovery import measured_recovery

GGUF_SCHEMES = ("gguf_f16", "gguf_q8_0", "gguf_q4_0")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def fields(path):
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("scheme", GGUF_SCHEMES)
def test_a_gguf_variant_reads_back_as_the_merged_model(scheme, merged, tokenized, variant):
    config = QuantizationConfig(scheme=scheme, min_recovery=0.95)
    held_out = held_out_rows(tokenized, 24, 0)
    assert measured_recovery(merged, variant(scheme=scheme), held_out, config, lambda line: None).passed


def test_smaller_formats_are_smaller(merged, variant):
    sizes = [gguf_file(variant(scheme=scheme)).stat().st_size for scheme in GGUF_SCHEMES]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] < 0.6 * (merged / "model.safetensors").stat().st_size


@pytest.mark.parametrize("scheme", GGUF_SCHEMES)
def test_llama_cpp_answers_as_transformers_does(scheme, merged, tokenized, variant, tmp_path):
    try:
        engine_python()
    except EngineEnvironmentMissing as missing:
        pytest.skip(str(missing))
    asked = prompts(held_out_rows(tokenized, 8, 0), 8)
    task = GenerationTask(scheme, variant(scheme=scheme), "llama_cpp", tmp_path / "requests.parquet", tmp_path / "out")
    write_requests(task.requests, asked["row_id"].to_pylist(), asked["prompt_token_ids"].to_pylist())
    run_tasks(None, [task], GenerationConfig(max_new_tokens=48), EngineConfig(), lambda line: None)
    answers = {row["row_id"]: row["completion"] for row in read_answers(task.output).to_pylist()}
    expected = answer_with_transformers(merged, asked, 48).to_pylist()
    assert answers == {row["row_id"]: row["completion"] for row in expected}


def test_the_file_carries_tokenizer_template_and_stop_ids(merged, variant):
    written = fields(gguf_file(variant(scheme="gguf_q8_0")))
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    vocabulary = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    tokens = written["tokenizer.ggml.tokens"]
    assert written["general.architecture"] == "llama"
    assert written["tokenizer.chat_template"] == (merged / "chat_template.jinja").read_text()
    assert (written["tokenizer.ggml.eos_token_id"], written["tokenizer.ggml.eot_token_id"]) == (2, 2)
    assert written["tokenizer.ggml.padding_token_id"] == 0
    assert written["tokenizer.ggml.pre"] == "gpt-2"
    assert tokens[: len(vocabulary)] == [vocabulary[index] for index in range(len(vocabulary))]
    assert written["tokenizer.ggml.token_type"][:3] == [3, 3, 3]  # control tokens
    assert len(tokens) == 512  # every row of the embedding has a token, unused ones a placeholder
    assert written["tokenizer.ggml.token_type"][-1] == 5
    assert len(written["tokenizer.ggml.merges"]) == len(tokenizer["model"]["merges"])


def test_a_second_stop_id_becomes_the_end_of_turn(merged, tmp_path):
    shutil.copytree(merged, tmp_path / "merged")
    (tmp_path / "merged/generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    written = fields(write_gguf(tmp_path / "merged", tmp_path, QuantizationConfig(scheme="gguf_f16"), print))
    assert (written["tokenizer.ggml.eos_token_id"], written["tokenizer.ggml.eot_token_id"]) == (2, 0)


def test_qwen2_with_its_biases_and_own_head_reads_back_exactly(merged, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shutil.copytree(merged, tmp_path / "qwen2")
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(tmp_path / "qwen2")
    (tmp_path / "gguf").mkdir()
    path = write_gguf(tmp_path / "qwen2", tmp_path / "gguf", QuantizationConfig(scheme="gguf_f16"), print)
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=2e-3)


def test_query_rows_are_interleaved_for_llama_alone():
    settings = {"num_attention_heads": 2, "num_key_value_heads": 1}
    rows = np.arange(8)[:, None]
    permuted = _permuted("model.layers.0.self_attn.q_proj.weight", rows, settings, "LLAMA")
    assert permuted.ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert _permuted("model.layers.0.self_attn.v_proj.weight", rows, settings, "LLAMA") is rows
    assert _permuted("model.layers.0.self_attn.q_proj.weight", rows, settings, "QWEN2") is rows


def test_llama_3_frequency_factors_equal_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    settings = {"hidden_size": 512, "num_attention_heads": 4, "rope_parameters": rope}
    factors = _rope_factors(settings)["rope_freqs.weight"]
    assert np.allclose(plain / factors, scaled.numpy(), rtol=1e-5)
    assert (factors.min(), factors.max()) == (1.0, 8.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "covers LlamaForCausalLM, Qwen2ForCausalLM, not Mixtral",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE types default and llama3, not yarn"),
        ({"hidden_size": 100}, "shares one scale over 32 weights, but hidden_size is 100. Use gguf_f16"),
    ],
)
def test_a_model_the_writer_cannot_express_is_refused_before_work(changed, message, merged, tmp_path):
    settings = json.loads((merged / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **changed}))
    with pytest.raises(ArchitectureUnsupported, match=message):
        refuse_unfit_model(tmp_path, QuantizationConfig(scheme="gguf_q8_0"))


def test_pre_tokenizers_that_llama_cpp_knows_have_its_names():
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    qwen2 = words + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    bare = {**BYTE_LEVEL, "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    split = {"type": "Split", "pattern": {"Regex": qwen2}, "behavior": "Isolated", "invert": False}
    llama3 = {**split, "pattern": {"Regex": qwen2.replace(r"\p{N}|", r"\p{N}{1,3}|")}}
    assert pre_tokenizer_name(BYTE_LEVEL) == "gpt-2"
    assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": [digits, BYTE_LEVEL]}) == "smollm"
    assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": [split, bare]}) == "qwen2"
    assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": [llama3, bare]}) == "llama-bpe"


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "Whitespace"},
        {**BYTE_LEVEL, "add_prefix_space": True},
        {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}, BYTE_LEVEL]},
    ],
)
def test_a_near_match_of_a_pre_tokenizer_is_refused(pre_tokenizer):
    with pytest.raises(TokenizerUnsupported, match=r"llama\.cpp would tokenize differently"):
        pre_tokenizer_name(pre_tokenizer)
