"""How much memory a lineage takes on a named GPU, in training and in serving, before anything is downloaded.

Sizes come from the catalog, from a local directory or from the Hub's cache; the plans are the ones the steps themselves
make when they run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import yaml
from dagster.components.resolved.errors import ResolutionException
from pydantic import TypeAdapter, ValidationError

from llm_assets.components.lineage import LineageConfig
from llm_assets.core import LLMAssetsError
from llm_assets.defs.runtime import home
from llm_assets.engine.architecture import Architecture
from llm_assets.engine.planner import EngineMemoryTooSmall, plan_engine
from llm_assets.engine.tasks import EngineConfig
from llm_assets.interface.arguments import explained
from llm_assets.interface.display import Page, Panel, bytes_shown
from llm_assets.interface.local_instance import open_instance
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.hardware import Hardware, UnknownHardware, find_gpu
from llm_assets.quantization.support import Placement, placement
from llm_assets.quantization.tiers import DEFAULT_GPU, USABLE_SHARE, Purpose, TierTooSmall, gpu_tier
from llm_assets.resources.artifact_store import ArtifactMissing, ArtifactStore
from llm_assets.training.base_model import BaseModelConfig
from llm_assets.training.catalog import base_models, find_base_model
from llm_assets.training.memory_plan import MemoryTooSmall, plan_memory
from llm_assets.training.model_shape import ModelShape

SHIPPED = Path(__file__).parents[1] / "defs"
PLANNED_ROWS = 256  # as many prompts of the longest kind as one batch can hold
WEIGHT_BYTES = {  # per weight of a linear layer, block scales included
    "fp8_dynamic": 1.0, "fp8_static": 1.0, "int8_w8a8": 1.0, "w4a16": 0.5 + 2 / 128, "nvfp4": 0.5 + 1 / 16,
    "nvfp4a16": 0.5 + 1 / 16, "mxfp4": 0.5 + 1 / 32, "gguf_f16": 2.0, "gguf_q8_0": 34 / 32, "gguf_q4_0": 18 / 32,
}  # fmt: skip


class LineageUnknown(LLMAssetsError):
    """No such `defs.yaml`, and no shipped lineage of that name."""


class BaseModelSizeUnknown(LLMAssetsError):
    """The sizes of a base model that is built, or neither in the catalog nor on this machine."""


@dataclass(frozen=True)
class BaseSize:
    """What a plan needs to know of a base model."""

    shape: ModelShape
    parameters: int
    context_tokens: int


def read_lineage(name: str) -> LineageConfig:
    """The lineage of a `defs.yaml` file or a shipped model name, its `{{ env(...) }}` filled in.

    Raises:
        LineageUnknown: lists the shipped ones, or says what the file lacks.
    """
    file = Path(name) if Path(name).suffix in (".yaml", ".yml") else SHIPPED / name / "defs.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/defs.yaml")))
        raise LineageUnknown(f"{file} does not exist. Give the path of a defs.yaml, or one of: {known}.")
    try:
        documents = [doc for doc in yaml.safe_load_all(file.read_text()) if isinstance(doc, dict)]
        written = [doc["attributes"] for doc in documents if "attributes" in doc]
        if len(written) != 1:
            raise LineageUnknown(f"{file} holds {len(written)} lineages; one with `attributes` is planned at a time.")
        resolved = dg.ResolutionContext.default().resolve_value(written[0])
        return TypeAdapter(LineageConfig).validate_python(resolved)
    except ValidationError as error:
        raise LineageUnknown(f"{file}:\n{explained(error)}") from None
    except (yaml.YAMLError, ResolutionException) as error:
        raise LineageUnknown(f"{file} cannot be read: {error}") from None


def base_size(base: BaseModelConfig, model: str) -> BaseSize:
    """The sizes of a lineage's base model.

    Raises:
        BaseModelSizeUnknown: says how to make them known.
    """
    known = {entry.hub for entry in base_models().values()}
    if base.hub in known:
        entry = find_base_model(str(base.hub))
        return BaseSize(entry.model_shape(), entry.parameters, entry.context_tokens)
    directory = base.directory or (_cached(base) if base.hub else _materialized(model))
    if directory is None or not (directory / "config.json").is_file():
        raise BaseModelSizeUnknown(
            f"The sizes of {base.source} are not known before it is here. Materialize {model}/base_model, or use a "
            "model of the catalog (`llm-assets models`)."
        )
    shape = ModelShape.read(directory)
    config = yaml.safe_load((directory / "config.json").read_text())
    context = int(config.get("max_position_embeddings") or 2048)
    return BaseSize(shape, shape.linear_values + shape.other_values, context)


def plan(config: LineageConfig, gpu: Hardware) -> Page:
    """Training and serving plans of a lineage on one GPU.

    Raises:
        BaseModelSizeUnknown: as `base_size`.
    """
    size = base_size(config.base_model, config.model)
    return Page(
        f"{config.model}: {config.base_model.source}, {size.parameters / 1e9:.2f}B parameters, on {gpu.name} "
        f"({gpu.memory_bytes / 2**30:.0f} GiB)",
        (
            Panel(f"Training ({config.training.method})", _training(config, size, gpu)),
            Panel(
                "Serving",
                list(_serving(config, size, gpu)),
                ("variant", "weights", "KV per token", "rows at once", "tokens cached", "verdict"),
            ),
            Panel("GPUs to request", list(_requests(config, size, gpu)), ("for", "GPUs", "because")),
        ),
    )


def _training(config: LineageConfig, size: BaseSize, gpu: Hardware) -> list[tuple[str, ...]]:
    tokens = config.tokenization.pack_length_tokens or config.tokenization.max_length_tokens
    try:
        planned = plan_memory(
            size.shape, config.training, pack_length_tokens=tokens, device_memory_bytes=gpu.memory_bytes
        )
    except MemoryTooSmall as error:
        return [(f"does not fit: {error}",)]
    return [(line,) for line in planned.table().splitlines()]


def _serving(config: LineageConfig, size: BaseSize, gpu: Hardware) -> Iterator[tuple[str, ...]]:
    variants: list[QuantizationConfig | None] = [None, *config.quantization]
    for variant in variants:
        name = variant.asset_name if variant else "merged"
        verdict = placement(variant, gpu) if variant else None
        if verdict and verdict.where is Placement.UNSUPPORTED:
            yield (name, "", "", "", "", f"{verdict.reason}. Use {verdict.instead}")
            continue
        architecture, engine = _served(size, variant), config.inference.engine if config.inference else EngineConfig()
        weights, per_token = bytes_shown(architecture.weight_bytes), bytes_shown(architecture.kv_bytes_per_token)
        devices = _devices(architecture, size, gpu, engine)
        try:
            planned = plan_engine(
                architecture,
                [config.tokenization.max_length_tokens] * PLANNED_ROWS,
                max_new_tokens=config.evaluation.generation.max_new_tokens,
                engine=variant.engine if variant else "vllm",
                config=engine.model_copy(update={"tensor_parallel_size": devices}),
                device_memory_bytes=gpu.memory_bytes,
            )
        except EngineMemoryTooSmall as error:
            yield (name, weights, per_token, "", "", f"does not fit: {error}")
            continue
        cached = f"{planned.kv_cache_tokens:,}" if planned.kv_cache_tokens else ""
        verdict = "fits" if devices == 1 else f"fits on {devices} x {gpu.name}"
        if variant and variant.engine == "llama_cpp":
            memory = bytes_shown(architecture.weight_bytes + (planned.kv_cache_bytes or 0))
            verdict = f"by llama.cpp on the CPU, in {memory} of main memory"
        yield (name, weights, per_token, str(planned.max_num_seqs), cached, verdict)


def _devices(architecture: Architecture, size: BaseSize, gpu: Hardware, engine: EngineConfig) -> int:
    """GPUs that share the model: as configured, else the tier's for its weights."""
    if "tensor_parallel_size" in engine.model_fields_set or gpu.device != "cuda":
        return engine.tensor_parallel_size
    try:
        per_parameter = architecture.weight_bytes / size.parameters
        return gpu_tier(size.parameters, "serving", gpu_type=gpu.name, bytes_per_parameter=per_parameter).num_gpus
    except (TierTooSmall, UnknownHardware):
        return engine.tensor_parallel_size


def _served(size: BaseSize, variant: QuantizationConfig | None) -> Architecture:
    """The model as an engine holds it: quantized linear layers, everything else in 16 bits."""
    shape = size.shape
    linear = shape.linear_values * (WEIGHT_BYTES[variant.scheme] if variant else 2.0)
    return Architecture(
        layers=shape.layers,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden=shape.hidden,
        intermediate=shape.intermediate,
        vocabulary=shape.vocabulary,
        context_tokens=size.context_tokens,
        dtype_bytes=2,
        kv_dtype_bytes=1 if variant and variant.kv_cache else 2,
        weight_bytes=round(linear + 2 * shape.other_values),
    )


def _requests(config: LineageConfig, size: BaseSize, gpu: Hardware) -> Iterator[tuple[str, ...]]:
    """What to ask a cluster for, from the model's size alone; A100s where the plan is for a CPU."""
    gpu_type, method = gpu.name if gpu.device == "cuda" else DEFAULT_GPU, config.training.method
    asked: tuple[tuple[str, Purpose, float], ...] = (
        (f"training ({method})", "training", 2.0),
        ("serving merged", "serving", 2.0),
        *(
            (f"serving {variant.asset_name}", "serving", _served(size, variant).weight_bytes / size.parameters)
            for variant in config.quantization
            if variant.engine == "vllm" and placement(variant, gpu).where is not Placement.UNSUPPORTED
        ),
    )
    for purpose, kind, per_parameter in asked:
        try:
            tier = gpu_tier(size.parameters, kind, gpu_type=gpu_type, method=method, bytes_per_parameter=per_parameter)
        except (TierTooSmall, UnknownHardware) as error:
            yield purpose, "none", str(error)
            continue
        shared = kind == "training" and tier.needed_bytes > find_gpu(gpu_type).memory_bytes
        if shared and method == "qlora":
            yield (
                purpose,
                "none",
                "every GPU holds the whole model: take a larger one, or method lora with sharding full",
            )
            continue
        how = ", shared by training.sharding full" if shared else ""
        if tier.num_gpus > 1 and tier.needed_bytes < find_gpu(gpu_type).memory_bytes * USABLE_SHARE:
            how = "; more by the published rule for models of this size"
        yield purpose, f"{tier.num_gpus} x {tier.gpu_type}", f"at least {bytes_shown(tier.needed_bytes)}{how}"


def _materialized(model: str) -> Path | None:
    """The base model as this machine's Dagster last materialized it."""
    if not (home() / "artifacts" / model / "base_model").is_dir():
        return None
    with open_instance() as instance:
        try:
            return ArtifactStore(root=str(home() / "artifacts")).open(instance, dg.AssetKey([model, "base_model"])).path
        except ArtifactMissing:
            return None


def _cached(base: BaseModelConfig) -> Path | None:
    """The Hub's cached snapshot, if it is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(str(base.hub), "config.json", revision=base.revision)
    return Path(found).parent if isinstance(found, str) else None
