"""The plan of an engine, by hand and against what the engine itself reports."""

import dataclasses
import json
from pathlib import Path

import pytest

from llm_assets.engine.architecture import ArchitectureUnsupported, ModelFilesMissing, read_architecture
from llm_assets.engine.device import device_memory_bytes
from llm_assets.engine.planner import ContextTooLong, EngineMemoryTooSmall, plan_engine
from llm_assets.engine.tasks import EngineConfig

GIB = 2**30


def plan(architecture, lengths, memory_bytes=8 * GIB, new_tokens=12, engine="vllm", **config):
    return plan_engine(
        architecture,
        lengths,
        max_new_tokens=new_tokens,
        engine=engine,
        config=EngineConfig(**config),
        device_memory_bytes=memory_bytes,
    )


@pytest.fixture
def llama_8b(tiny_base):
    """The shape of Llama 3.1 8B, 16 bits."""
    return dataclasses.replace(
        read_architecture(tiny_base),
        layers=32,
        kv_heads=8,
        head_dim=128,
        hidden=4096,
        intermediate=14336,
        vocabulary=128256,
        context_tokens=131072,
        weight_bytes=16_060_000_000,
    )


def test_one_token_of_llama_8b_costs_128_kib_of_cache(llama_8b):
    assert llama_8b.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072


def test_the_architecture_is_read_from_config_and_from_gguf_alike(tiny_base, tiny_gguf):
    from_config, from_gguf = read_architecture(tiny_base), read_architecture(tiny_gguf)
    assert from_config.layers == 2
    assert from_config.kv_bytes_per_token == 2 * 2 * 1 * 64 * 2
    weightless = [dataclasses.replace(found, weight_bytes=0) for found in (from_config, from_gguf)]
    assert weightless[0] == weightless[1]


def test_the_cache_holds_the_longest_rows_in_whole_blocks(tiny_base):
    planned = plan(read_architecture(tiny_base), [20, 52, 21], block_size=32, max_num_seqs=2)
    assert planned.max_model_len == 52 + 12
    # 64 and 33 tokens are 2 blocks each, and one is the engine's own; a block is 32 tokens of 512 bytes
    assert planned.kv_cache_bytes == (2 + 2 + 1) * 32 * 512
    assert planned.kv_cache_tokens == 5 * 64 // 2


def test_prompts_beyond_the_context_do_not_stretch_the_plan(tiny_base):
    planned = plan(read_architecture(tiny_base), [20, 100_000])
    assert (planned.max_model_len, planned.max_num_seqs, planned.context_tokens) == (32, 1, 512)


def test_a_row_never_exceeds_the_context(tiny_base):
    assert plan(read_architecture(tiny_base), [510], new_tokens=100).max_model_len == 512


def test_the_cache_of_a_large_job_stops_at_the_device(llama_8b):
    planned = plan(llama_8b, [8000] * 256, memory_bytes=24 * GIB, new_tokens=192)
    room = 24 * GIB * 0.9 - 16_060_000_000
    assert 0.5 * room < planned.kv_cache_bytes < room
    assert planned.max_num_seqs == planned.kv_cache_bytes // (131_072 * 8192)


def test_gpus_that_share_a_model_each_hold_their_part_of_the_cache(llama_8b):
    alone = plan(llama_8b, [8000] * 4, memory_bytes=80 * GIB, new_tokens=192)
    shared = plan(llama_8b, [8000] * 4, memory_bytes=80 * GIB, new_tokens=192, tensor_parallel_size=4)
    assert shared.kv_cache_tokens == alone.kv_cache_tokens
    assert shared.kv_cache_bytes == alone.kv_cache_bytes / 4
    assert plan(llama_8b, [8000], memory_bytes=12 * GIB, new_tokens=192, tensor_parallel_size=2).kv_cache_bytes


def test_weights_that_leave_no_room_for_a_row_are_refused_with_a_remedy(llama_8b):
    with pytest.raises(EngineMemoryTooSmall, match=r"8,192 tokens needs 1,073,741,824 bytes.*smaller variant"):
        plan(llama_8b, [8000], memory_bytes=16 * GIB, new_tokens=192)


def test_a_cache_set_too_small_is_refused_by_name(tiny_base):
    with pytest.raises(EngineMemoryTooSmall, match=r"engine\.kv_cache_bytes"):
        plan(read_architecture(tiny_base), [100], kv_cache_bytes=16384)


def test_a_context_the_model_does_not_have_is_refused(tiny_base):
    with pytest.raises(ContextTooLong, match=r"1,000; the model has 512"):
        plan(read_architecture(tiny_base), [100], max_model_len=1000)


def test_an_unseen_device_leaves_the_cache_to_the_engine(tiny_base):
    planned = plan(read_architecture(tiny_base), [20], memory_bytes=None)
    assert planned.kv_cache_bytes is None
    assert planned.max_model_len == 32


def test_no_rows_still_make_a_plan(tiny_base):
    assert plan(read_architecture(tiny_base), []).max_num_seqs == 1


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelFilesMissing, match=r"neither a config.json nor a .gguf"):
        read_architecture(tmp_path)


def test_latent_attention_is_refused(tiny_base, tmp_path):
    config = json.loads((tiny_base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "kv_lora_rank": 512}))
    with pytest.raises(ArchitectureUnsupported, match="kv_lora_rank"):
        read_architecture(tmp_path)


def test_a_calibrated_8_bit_cache_costs_half(tiny_base, tmp_path):
    config = json.loads((tiny_base / "config.json").read_text())
    scheme = {"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}
    (tmp_path / "config.json").write_text(json.dumps({**config, **scheme}))
    assert read_architecture(tmp_path).kv_bytes_per_token == read_architecture(tiny_base).kv_bytes_per_token / 2


def test_the_device_memory_is_what_is_free():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < device_memory_bytes() <= max(total, 200 * GIB)


def test_the_engine_reports_the_planned_cache(engine_run):
    planned, reported = engine_run.plan("first"), engine_run.report("first")
    assert reported["kv_cache_tokens"] == pytest.approx(planned["kv_cache_tokens"], rel=0.02)
    assert (
        reported["max_model_len"]
        == planned["max_model_len"]
        == max(len(ids) for ids in engine_run.prompts.values() if len(ids) < 512) + 12
    )
    assert reported["max_num_seqs"] == planned["max_num_seqs"] == 8
