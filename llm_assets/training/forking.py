"""How training gets processes of its own: forked from one that has imported the training stack, which takes 15 seconds.

Where this process has the stack already, holds no device and has no thread pool, its own forks are free. Otherwise a
fork server imports it once. On a machine with a GPU that server stops short of bitsandbytes, and so of what imports it:
the import looks at the device, and a device that was looked at before a fork is lost to the forks.
"""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.context import ForkContext, ForkServerContext
from pathlib import Path

STACK = ("torch", "transformers.trainer", "peft", "bitsandbytes")
PRELOADED = (
    *STACK, "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
    "transformers.integrations.bitsandbytes", "pyarrow.parquet", "llm_assets.training.trainer",
)  # fmt: skip
PRELOADED_BESIDE_A_GPU = (
    "torch", "torch.distributed.tensor", "sklearn.metrics", "pandas", "pyarrow.parquet", "llm_assets.training.packs",
)  # fmt: skip


def process_context() -> ForkContext | ForkServerContext:
    """What training processes are started with."""
    if may_fork():
        return multiprocessing.get_context("fork")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED_BESIDE_A_GPU if gpus() else PRELOADED))
    return server


def may_fork() -> bool:
    """Whether a fork of this process can train: the stack is imported, and neither device nor thread pool is in use."""
    if gpus() or any(name not in sys.modules for name in STACK):
        return False
    is_step = multiprocessing.parent_process() is not None  # forked for one step, and has computed nothing
    return is_step or sys.modules["torch"].get_num_threads() == 1


def gpus() -> list[str]:
    """The devices this process may use, as `CUDA_VISIBLE_DEVICES` names them; told without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def end_with_parent() -> None:
    """End this process when the one that started it is killed, so that none trains on into a directory given again.

    The kernel's parent-death signal would not do: the parent of a fork server's child is the server.
    """
    if parent := multiprocessing.parent_process():
        threading.Thread(target=lambda: (parent.join(), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
