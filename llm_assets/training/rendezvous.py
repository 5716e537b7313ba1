"""Where the machines of a training run meet: alone, or by what a cluster's training operator puts into the environment.

Kubeflow's Trainer and PyTorchJob, Volcano and SLURM wrappers around torchrun all set the same few names.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from llm_assets.core import LLMAssetsError


class RendezvousInvalid(LLMAssetsError):
    """The environment names machines to train with, and not how to meet them."""


@dataclass(frozen=True)
class Rendezvous:
    """The machines that train together, and which one this is.

    Attributes:
        nodes: Machines.
        node_rank: This one, from 0; the first runs the step that publishes.
        address: Host name of the first.
        port: Port on it.
    """

    nodes: int
    node_rank: int
    address: str
    port: int

    @property
    def identity(self) -> str:
        """What all machines call this run."""
        return f"{self.address}:{self.port}"


def rendezvous(environment: Mapping[str, str] = os.environ) -> Rendezvous:
    """Read `PET_NNODES`, `PET_NODE_RANK`, `PET_MASTER_ADDR` and `PET_MASTER_PORT` (torchrun's), or one machine's own.

    The older PyTorchJob sets `MASTER_ADDR` and `MASTER_PORT`, with `WORLD_SIZE` and `RANK` counting pods.

    Raises:
        RendezvousInvalid: a range of machines, or several without an address.
    """
    nodes = environment.get("PET_NNODES") or environment.get("WORLD_SIZE") or "1"
    first, _, last = nodes.partition(":")
    if last not in ("", first):
        raise RendezvousInvalid(
            f"PET_NNODES is {nodes}. A step trains on a fixed number of machines, so that its batches are the same "
            "when it is continued: set minimum and maximum alike."
        )
    if int(first) == 1:
        return Rendezvous(1, 0, "127.0.0.1", _free_port())
    address = environment.get("PET_MASTER_ADDR") or environment.get("MASTER_ADDR")
    if not address:
        raise RendezvousInvalid(
            f"The environment asks for {first} machines and names no PET_MASTER_ADDR. Run the step under a training "
            "operator (Kubeflow's TrainJob or PyTorchJob), or set it with PET_MASTER_PORT and PET_NODE_RANK on each."
        )
    port = environment.get("PET_MASTER_PORT") or environment.get("MASTER_PORT") or "29500"
    place = environment.get("PET_NODE_RANK") or environment.get("RANK") or "0"
    return Rendezvous(int(first), int(place), address, int(port))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
