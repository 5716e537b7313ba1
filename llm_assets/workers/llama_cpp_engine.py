"""llama.cpp inside the worker's own process, for GGUF variants, through the server object of `xllamacpp`.

Its completion call blocks, so each of the server's slots is fed by one thread. The server also listens on a loopback
port of the kernel's choice; nothing here uses it, so it is locked with a random key.
"""

import os
import secrets
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from llm_assets.workers.serving import Completion


class LlamaCppEngine:
    """One loaded GGUF file."""

    def __init__(self, model: str, plan: dict[str, Any], config: dict[str, Any]) -> None:
        started = time.monotonic()
        import xllamacpp

        self._import_seconds = time.monotonic() - started
        started = time.monotonic()
        self.model = model
        self.capacity = plan["max_num_seqs"]
        self.context_tokens = plan["context_tokens"]
        self._plan = plan
        self._version = xllamacpp.__version__
        self._server: Any = xllamacpp.Server(_parameters(_file(model), plan, config))
        self._threads = ThreadPoolExecutor(self.capacity, thread_name_prefix="llama_cpp")
        self._running: set[Future[Completion]] = set()
        self._load_seconds = time.monotonic() - started

    def submit(self, row_id: str, token_ids: list[int], generation: dict[str, Any], seed: int) -> None:
        """Take one row; what llama.cpp refuses comes back from `step` with its error."""
        request = {
            "prompt": token_ids,
            "max_tokens": generation["max_new_tokens"],
            "temperature": generation["temperature"],
            "top_p": generation["top_p"],
            "top_k": 0,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "samplers": ["top_p", "temperature"],
            "stop": list(generation["stop"]),
            "seed": seed,
            "cache_prompt": True,
        }
        self._running.add(self._threads.submit(self._complete, row_id, request))

    def step(self) -> list[Completion]:
        """Wait up to a second for rows to finish."""
        done, self._running = wait(self._running, timeout=1.0, return_when=FIRST_COMPLETED)
        return [future.result() for future in done]

    def report(self) -> dict[str, Any]:
        """What was started; the cache is planned in tokens, so the figure is the plan's."""
        return {
            "engine": "llama_cpp",
            "engine_version": self._version,
            "device": "cpu",
            "import_seconds": self._import_seconds,
            "load_seconds": self._load_seconds,
            "kv_cache_tokens": self._plan["kv_cache_tokens"],
            "max_model_len": self._plan["max_model_len"],
            "max_num_seqs": self.capacity,
        }

    def close(self) -> None:
        """Stop the server and free the model."""
        self._threads.shutdown(cancel_futures=True)
        self._server = None

    def _complete(self, row_id: str, request: dict[str, Any]) -> Completion:
        answer = self._server.handle_completions(request)
        if "error" in answer:
            return Completion(row_id, "", "error", 0, 0, answer["error"]["message"])
        choice, usage = answer["choices"][0], answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return Completion(row_id, choice["text"], choice["finish_reason"], usage["completion_tokens"], cached)


def _parameters(file: Path, plan: dict[str, Any], config: dict[str, Any]) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_parallel = plan["max_num_seqs"]
    parameters.n_ctx = plan["kv_cache_tokens"]
    parameters.n_batch = config["max_num_batched_tokens"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [secrets.token_hex()]
    parameters.ui = False
    parameters.verbosity = 1
    parameters.warmup = False
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    if threads:
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
    return parameters


def _file(model: str) -> Path:
    path = Path(model)
    return path if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))[0]
