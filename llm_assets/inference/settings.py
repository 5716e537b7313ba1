"""What a run of inference uses, and where each value came from: the caller, the registered version, or the planner.

The order is fixed: an explicit value always wins, then what the version was evaluated with, then what the planner
computes from model, rows and device. Nothing is decided anywhere else, so the list that is shown is complete.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from pydantic import Field, TypeAdapter, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.data.formats import AutoFormat, FormatConfig, TemplateFormat
from llm_assets.engine.tasks import EngineConfig, GenerationConfig
from llm_assets.inference.config import GenerationOverrides
from llm_assets.quantization.hardware import UnknownHardware, find_gpu
from llm_assets.quantization.tiers import gpu_tier, refuse_too_small
from llm_assets.registry.config import MERGED
from llm_assets.registry.versions import RegisteredVersion

PLANNED = ("max_model_len", "max_num_seqs", "kv_cache_tokens")


class Origin(StrEnum):
    """Where a value came from."""

    EXPLICIT = "explicit"
    VERSION = "registered version"
    PLANNER = "planner"
    DEFAULT = "default"


class DevicesMissing(LLMAssetsError):
    """GPUs were asked for that this machine does not have."""


@dataclass(frozen=True)
class Parameter:
    """One value of a run and its origin."""

    name: str
    value: Any
    origin: Origin


class InferenceRequest(Config):
    """What a caller asks for; everything left out is resolved."""

    model_name: str = Field(description="Registered name.")
    input_source: str = Field(description="File, glob, catalog.schema.table, or file.duckdb::table with the rows.")
    output_table: str | None = Field(
        default=None, description="answers.parquet, file.duckdb::table or catalog.schema.table; None only returns them."
    )
    version: str | None = Field(default=None, description="Number or alias; the champion when left out.")
    variant: str | None = Field(default=None, description="merged, or the name of a quantized variant.")
    format: FormatConfig | None = Field(default=None, description="How a row asks; as in training when left out.")
    generation: GenerationOverrides = Field(default=GenerationOverrides(), description="Changes to the sampling.")
    engine: EngineConfig = Field(default=EngineConfig(), description="Sizes of the engine.")
    num_gpus: int | None = Field(default=None, ge=1, description="GPUs that share the model.")
    gpu_type: str | None = Field(default=None, description="Known GPU, such as A100.")

    @model_validator(mode="after")
    def _known_gpu(self) -> Self:
        if self.gpu_type is not None:
            try:
                find_gpu(self.gpu_type)
            except UnknownHardware as error:
                raise ValueError(str(error).replace("hardware.target", "gpu_type")) from None
        size = self.engine.tensor_parallel_size
        if "tensor_parallel_size" in self.engine.model_fields_set and self.num_gpus not in (None, size):
            raise ValueError(f"num_gpus is {self.num_gpus} and tensor_parallel_size is {size}. Give one of them.")
        return self


@dataclass(frozen=True)
class Resolved:
    """Everything a run needs, and the list of where it came from."""

    variant: str
    format: FormatConfig
    generation: GenerationConfig
    engine: EngineConfig
    parameters: tuple[Parameter, ...]


def resolve(request: InferenceRequest, version: RegisteredVersion, gpus: list[str] | None) -> Resolved:
    """Fill what a request leaves out from the version and the machine.

    Args:
        request: What was asked.
        version: The version that will answer.
        gpus: Names of this machine's GPUs, none for a CPU; None where the engine runs elsewhere.

    Raises:
        DevicesMissing: more GPUs, or other ones, than there are.
        TierTooSmall: the GPUs cannot hold the model.
        VariantUnknown: lists the variants there are.
    """
    variant = request.variant or MERGED
    version.variant_directory(variant)
    generation = request.generation.over(version.generation)
    row_format, format_origin = _format(request, version.metadata)
    engine, devices = _devices(request, version.metadata, variant, gpus)
    serving = version.metadata.get("dtypes", {}).get("serving", {}).get(variant)
    by_caller = "dtype" in request.engine.model_fields_set
    parameters = [
        Parameter("version", version.version, Origin.EXPLICIT if request.version else Origin.DEFAULT),
        Parameter("variant", variant, Origin.EXPLICIT if request.variant else Origin.DEFAULT),
        Parameter("format", row_format.type, format_origin),
        *(Parameter("prompt", prompt["uri"], Origin.VERSION) for prompt in _prompts(row_format, version.metadata)),
        *(
            Parameter(name, value, Origin.VERSION if getattr(request.generation, name) is None else Origin.EXPLICIT)
            for name, value in generation.model_dump(mode="json").items()
        ),
        Parameter("dtype", engine.dtype if by_caller else serving, Origin.EXPLICIT if by_caller else Origin.VERSION),
        *(
            Parameter(name, getattr(engine, name), Origin.EXPLICIT)
            for name in sorted(request.engine.model_fields_set - {"dtype", "tensor_parallel_size"})
        ),
        *devices,
    ]
    return Resolved(variant, row_format, generation, engine, tuple(parameters))


def planned(report: Mapping[str, Any], request: InferenceRequest) -> list[Parameter]:
    """Sizes the engine was started with that nobody gave, from its report."""
    return [
        Parameter(name, report[name], Origin.PLANNER)
        for name in PLANNED
        if name in report and name not in request.engine.model_fields_set
    ]


def _format(request: InferenceRequest, metadata: Mapping[str, Any]) -> tuple[FormatConfig, Origin]:
    if request.format is not None:
        return request.format, Origin.EXPLICIT
    if not metadata.get("row_format"):
        return AutoFormat(), Origin.DEFAULT
    recorded: Any = TypeAdapter(FormatConfig).validate_python(metadata["row_format"])
    for prompt in _prompts(recorded, metadata):
        recorded = recorded.resolved(prompt["template"])
    return recorded, Origin.VERSION


def _prompts(row_format: Any, metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The recorded prompt version that a template asks with; whatever its alias means by now."""
    uri = row_format.template_uri if isinstance(row_format, TemplateFormat) else None
    name = (uri or "").removeprefix("prompts:/").partition("@")[0].partition("/")[0]
    return [prompt for prompt in metadata.get("prompts", ()) if prompt["name"] == name]


def _devices(
    request: InferenceRequest, metadata: Mapping[str, Any], variant: str, gpus: list[str] | None
) -> tuple[EngineConfig, list[Parameter]]:
    size = {
        "parameters": metadata["architecture"]["parameters"],
        "purpose": "serving",
        "bytes_per_parameter": _bytes_per_parameter(metadata, variant),
    }
    if gpus is not None:
        _refuse_missing(request, gpus)
    gpu_type = request.gpu_type or (_known(gpus[0]) if gpus else None)
    by_caller = request.num_gpus is not None or "tensor_parallel_size" in request.engine.model_fields_set
    asked = request.num_gpus or request.engine.tensor_parallel_size
    if gpu_type and not by_caller:
        asked = gpu_tier(gpu_type=gpu_type, **size).num_gpus
    if gpu_type:
        refuse_too_small(gpu_type, asked, **size)
    if gpus and asked > len(gpus):
        raise DevicesMissing(
            f"The model needs {asked} x {gpu_type}; this machine has {len(gpus)}. Use a quantized variant, or pass "
            "trigger_remote=True to run where there are more."
        )
    on_cpu = gpus is not None and not gpus
    engine = request.engine.model_copy(update={"tensor_parallel_size": asked})
    kind = request.gpu_type or (gpus[0] if gpus else ("cpu" if on_cpu else gpu_type))
    return engine, [
        Parameter("num_gpus", 0 if on_cpu else asked, Origin.EXPLICIT if by_caller else Origin.PLANNER),
        Parameter("gpu_type", kind, Origin.EXPLICIT if request.gpu_type else Origin.PLANNER),
    ]


def _refuse_missing(request: InferenceRequest, gpus: list[str]) -> None:
    here = f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU"
    wanted = " x ".join(str(part) for part in (request.num_gpus, request.gpu_type) if part)
    other = request.gpu_type and (not gpus or find_gpu(request.gpu_type).name != _known(gpus[0]))
    if other or (request.num_gpus or 0) > len(gpus):
        raise DevicesMissing(
            f"{wanted} GPU asked for; this machine has {here}. Leave num_gpus and gpu_type out to use what there is, "
            "or pass trigger_remote=True to run where they are."
        )


def _known(name: str) -> str | None:
    try:
        return find_gpu(name).name
    except UnknownHardware:
        return None


def _bytes_per_parameter(metadata: Mapping[str, Any], variant: str) -> float:
    """Bytes per parameter of a variant as it is stored."""
    stored = metadata["scoreboard"]["candidates"].get(variant, {}).get("bytes")
    return stored / metadata["architecture"]["parameters"] if stored else 2.0
