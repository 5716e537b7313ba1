"""Which of the processes that train together this one is. Alone, it is the first of one and nothing is exchanged.

All of them load, measure and step alike; only the first one writes files, decides what is continued from, and talks.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
# long enough for the first one to write a large checkpoint; nobody waits for a dead one, whose agent ends the others
LONGEST_WAIT = timedelta(hours=2)


def rank() -> int:
    """Place of this process among all that train together, from 0."""
    return int(os.environ["RANK"]) if _joined() else 0


def world() -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if _joined() else 1


def is_first() -> bool:
    """Whether this process writes and talks."""
    return rank() == 0


def device_index() -> int | None:
    """The GPU of this process among those of its machine; None where it trains alone."""
    return int(os.environ["LOCAL_RANK"]) if _joined() else None


def join(backend: str) -> None:
    """Meet the others, by the addresses the launcher has put into the environment."""
    import torch

    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend, timeout=LONGEST_WAIT)


def leave() -> None:
    """Part from the others."""
    import torch

    if _joined():
        torch.distributed.destroy_process_group()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    if not _joined():
        return make()
    import torch

    held: list[Any] = [make() if is_first() else None]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if _joined():
        import torch

        torch.distributed.barrier()


def _joined() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()
