"""How much memory an engine started on this machine can count on, without importing a deep learning library."""

import subprocess
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USE = Path("/sys/fs/cgroup/memory.current")


def device_memory_bytes() -> int:
    """Free memory of the fullest NVIDIA GPU, else the main memory this process may still take."""
    gpus = _gpu_memory_bytes()
    return min(gpus) if gpus else _available_main_memory_bytes()


def _gpu_memory_bytes() -> list[int]:
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return []
    return [int(line) * 2**20 for line in answer.stdout.split() if line.isdigit()]


def _available_main_memory_bytes() -> int:
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(meminfo["MemAvailable"].split()[0]) * 1024
    if CGROUP_LIMIT.exists() and (limit := CGROUP_LIMIT.read_text().strip()) != "max":
        available = min(available, int(limit) - int(CGROUP_USE.read_text()))
    return available


def gpu_names() -> list[str]:
    """Name of every NVIDIA GPU of this machine, in the driver's order; none without a driver."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
