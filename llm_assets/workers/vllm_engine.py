"""vLLM inside the worker's own process: CPU and CUDA through the same calls.

In one process there is nothing left to orphan when the worker is killed, and nothing to import twice.
"""

import gc
import time
from typing import Any

from llm_assets.workers.serving import Completion, RowRefused


class VllmEngine:
    """One loaded checkpoint of vLLM."""

    def __init__(self, model: str, plan: dict[str, Any], config: dict[str, Any]) -> None:
        started = time.monotonic()
        import vllm
        from vllm.platforms import current_platform

        self.model = model
        self.capacity = plan["max_num_seqs"]
        self.context_tokens = plan["context_tokens"]
        self._on_cpu = current_platform.is_cpu()
        _import_what_the_engine_imports_late(self._on_cpu)
        self._import_seconds = time.monotonic() - started
        started = time.monotonic()
        self._llm = vllm.LLM(
            model=model,
            dtype=config["dtype"],
            max_model_len=plan["max_model_len"],
            max_num_seqs=plan["max_num_seqs"],
            max_num_batched_tokens=_batched_tokens(plan, config),
            kv_cache_memory_bytes=plan["kv_cache_bytes"],
            gpu_memory_utilization=config["device_memory_share"],
            block_size=config["block_size"],
            enable_prefix_caching=True,
            enforce_eager=self._on_cpu,  # on CPU compilation costs more start-up than any job here earns back
            tensor_parallel_size=config["tensor_parallel_size"],
            seed=0,
            use_tqdm_on_load=False,
            disable_log_stats=True,
        )
        self._load_seconds = time.monotonic() - started
        self._engine = self._llm.llm_engine
        self._version = vllm.__version__

    def submit(self, row_id: str, token_ids: list[int], generation: dict[str, Any], seed: int) -> None:
        """Take one row; raises `RowRefused` when vLLM's validation rejects it."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input

        sampling = SamplingParams(
            n=1,
            temperature=generation["temperature"],
            top_p=generation["top_p"],
            top_k=0,
            min_p=0.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            max_tokens=generation["max_new_tokens"],
            min_tokens=0,
            stop=list(generation["stop"]) or None,
            seed=seed,
            ignore_eos=False,
            skip_special_tokens=True,
        )
        try:
            self._engine.add_request(row_id, tokens_input(token_ids), sampling)
        except (ValueError, VLLMClientError) as refusal:  # empty, out of vocabulary
            raise RowRefused(str(refusal)) from refusal

    def step(self) -> list[Completion]:
        """Run one scheduler step."""
        return [
            Completion(
                row_id=output.request_id,
                text=output.outputs[0].text,
                finish_reason="stop" if output.outputs[0].finish_reason == "stop" else "length",
                completion_tokens=len(output.outputs[0].token_ids),
                cached_prompt_tokens=output.num_cached_tokens or 0,
            )
            for output in self._engine.step()
            if output.finished
        ]

    def report(self) -> dict[str, Any]:
        """What was started; `kv_cache_tokens` is the engine's own figure."""
        from vllm.platforms import current_platform

        settings = self._engine.vllm_config
        return {
            "engine": "vllm",
            "engine_version": self._version,
            "device": current_platform.get_device_name(),
            "import_seconds": self._import_seconds,
            "load_seconds": self._load_seconds,
            "kv_cache_tokens": settings.cache_config.kv_cache_size_tokens,
            "max_model_len": settings.model_config.max_model_len,
            "max_num_seqs": settings.scheduler_config.max_num_seqs,
        }

    def close(self) -> None:
        """Drop the engine; the next model of the job finds the memory free."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine, self._llm
        gc.collect()
        cleanup_dist_env_and_memory()


def _batched_tokens(plan: dict[str, Any], config: dict[str, Any]) -> int:
    """Tokens of one step: never more than all rows can bring, never fewer than one per row."""
    rows = plan["max_num_seqs"]
    return max(min(config["max_num_batched_tokens"], rows * plan["max_model_len"]), rows)


def _import_what_the_engine_imports_late(on_cpu: bool) -> None:
    """Count imports as imports: otherwise the first model of a job seems to load ten times slower than the second."""
    import importlib

    importlib.import_module("vllm.v1.engine.core")
    importlib.import_module("vllm.v1.worker.cpu_worker" if on_cpu else "vllm.v1.worker.gpu_worker")
