"""Run a registered model over a table by one call: a name is enough, everything else travels with the version.

Here it needs no Dagster; on a deployment it is one run of the lineage's `<model>_run_inference` job. Both call the same
function, so they resolve, answer and tell the same.
"""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from llm_assets.automation.inference_job import RESULT, op_name, result_of
from llm_assets.components.published import without_passwords
from llm_assets.defs.runtime import home
from llm_assets.engine.device import gpu_names
from llm_assets.engine.job import engine_python
from llm_assets.engine.local import run_tasks
from llm_assets.engine.tasks import EngineConfig
from llm_assets.inference.batch import answer_table
from llm_assets.inference.config import GenerationOverrides
from llm_assets.inference.settings import InferenceRequest, Parameter
from llm_assets.interface.arguments import ArgumentsInvalid, explained
from llm_assets.interface.deployed import deployed_job, run_to_end
from llm_assets.interface.display import Page, Panel, Readable
from llm_assets.interface.graphql import DagsterAPI
from llm_assets.interface.progress import Log
from llm_assets.registry.tracking_store import redacted

SAMPLE_ROWS = 5


@dataclass(frozen=True, repr=False)
class InferenceResult(Readable):
    """A finished run over a table.

    Attributes:
        model_name: Registered name.
        model_version: Version that answered.
        output_table: Where the answers are; None where they are only returned.
        rows: Rows of the input, each answered or failed.
        answered_rows: Rows the engine was asked now; the others were taken over from earlier calls.
        failed_rows: Rows whose `error` says why they have no answer.
        usage: Tokens, seconds and speed.
        parameters: Every value used, with its origin: explicit, registered version, planner or default.
        answers: Parquet file with this call's rows and answers; on the deployment's disk for a remote run.
        run_id: Dagster run of a remote call.
        links: Where to look.
    """

    model_name: str
    model_version: str
    output_table: str | None
    rows: int
    answered_rows: int
    failed_rows: int
    usage: Mapping[str, Any]
    parameters: tuple[Parameter, ...]
    answers: Path
    run_id: str | None
    links: Mapping[str, str]

    def origin(self, name: str) -> str:
        """Where a parameter's value came from."""
        return str(next(parameter.origin for parameter in self.parameters if parameter.name == name))

    def value(self, name: str) -> Any:
        """A parameter's value."""
        return next(parameter.value for parameter in self.parameters if parameter.name == name)

    def table(self) -> pa.Table:
        """This call's rows with their answers, in the order of the input."""
        return pq.read_table(self.answers)

    def page(self) -> Page:
        """What was answered, with which values, and the first answers."""
        summary = (
            ("rows", self.rows),
            ("answered now", self.answered_rows),
            ("failed", self.failed_rows),
            ("output", self.output_table),
            *((name.replace("_", " "), self.usage[name]) for name in ("prompt_tokens", "completion_tokens", "seconds")),
            ("tokens per second", self.usage["tokens_per_second"]),
        )
        return Page(
            f"{self.model_name} version {self.model_version}: {self.rows:,} rows",
            (
                Panel("Result", summary),
                Panel("Parameters", [(p.name, p.value, p.origin) for p in self.parameters], ("", "value", "from")),
                Panel("First answers", self._first_answers(), ("row", "answer", "ended by")),
                Panel("Links", list(self.links.items())),
            ),
        )

    def _first_answers(self) -> list[tuple[Any, ...]]:
        if not self.answers.exists():
            return []
        head = next(pq.ParquetFile(self.answers).iter_batches(SAMPLE_ROWS)).to_pylist()
        return [(row["row_id"], " ".join(row["completion"].split())[:80], row["finish_reason"]) for row in head]


def run_inference(
    *,
    input_source: Any,
    model_name: str,
    output_table: str | None = None,
    version: str | int | None = None,
    variant: str | None = None,
    format: Any = None,
    num_gpus: int | None = None,
    gpu_type: str | None = None,
    trigger_remote: bool = False,
    dagster_url: str | None = None,
    tracking_uri: str | None = None,
    log: Log = print,
    **overrides: Any,
) -> InferenceResult:
    """Answer every row of a table with a registered version, once per row and version.

    Args:
        input_source: File, glob, `file.duckdb::table`, `catalog.schema.table`, or a pandas or pyarrow table.
        model_name: Registered name.
        output_table: `answers.parquet`, `file.duckdb::schema.table` or `catalog.schema.table`; None only returns them.
        version: Number or alias; None is the champion.
        variant: `merged` or a quantized variant; None is merged.
        format: How a row asks; None is as in training.
        num_gpus: GPUs that share the model; None lets the planner choose.
        gpu_type: Known GPU, such as A100; None is what there is.
        trigger_remote: Run on the deployed Dagster, which then reads and writes the named files and tables.
        dagster_url: Its web server; None takes LLM_ASSETS_DAGSTER_URL.
        tracking_uri: MLflow's, for a run here; None takes the environment's.
        log: Receives progress lines.
        overrides: Sampling (`temperature`, `max_new_tokens`, `top_p`, `stop`, `seed`) and engine sizes
            (`max_model_len`, `max_num_seqs`, `dtype`, …); they win over everything.

    Returns:
        The answers, and for each parameter where its value came from.

    Raises:
        ArgumentsInvalid: lists every wrong argument, before any work.
        VersionUnknown, VariantUnknown, DevicesMissing, TierTooSmall, DestinationInvalid: before any work.
        EngineEnvironmentMissing: no engine on this machine.
    """
    request = inference_request(
        input_source=input_source if isinstance(input_source, str) else _written(input_source, trigger_remote),
        model_name=model_name,
        output_table=output_table,
        version=None if version is None else str(version),
        variant=variant,
        format=format,
        num_gpus=num_gpus,
        gpu_type=gpu_type,
        overrides=overrides,
    )
    if trigger_remote:
        _refuse_for_remote(request, tracking_uri)
        return _remotely(request, DagsterAPI.resolve(dagster_url), log)
    python = engine_python()
    answers = answer_table(
        request,
        lambda tasks, generation, engine: run_tasks(python, tasks, generation, engine, log),
        home=home(),
        gpus=gpu_names(),
        log=log,
        tracking_uri=tracking_uri,
    )
    return _result(request, result_of(answers), None, {})


def inference_request(overrides: Mapping[str, Any], **arguments: Any) -> InferenceRequest:
    """The request that the arguments of a call make.

    Raises:
        ArgumentsInvalid: lists every wrong argument; an unknown one with the closest names.
    """
    sampling, sizes = set(GenerationOverrides.model_fields), set(EngineConfig.model_fields)
    if unknown := sorted(set(overrides) - sampling - sizes):
        close = difflib.get_close_matches(unknown[0], sampling | sizes, n=2)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ArgumentsInvalid(
            f"run_inference takes no {', '.join(unknown)}.{hint} Sampling: {', '.join(sorted(sampling))}. Engine: "
            f"{', '.join(sorted(sizes))}."
        )
    written = {name: value for name, value in arguments.items() if value is not None}
    written["generation"] = {name: value for name, value in overrides.items() if name in sampling}
    written["engine"] = {name: value for name, value in overrides.items() if name in sizes}
    try:
        return InferenceRequest.model_validate(written)
    except ValidationError as error:
        raise ArgumentsInvalid(explained(error)) from None


def _written(frame: Any, remote: bool) -> str:
    """A data frame as a file; its name is its content, so the same rows are recognized."""
    if remote:
        raise ArgumentsInvalid(
            f"input_source is a {type(frame).__name__} in this process, which the deployment cannot read. Write it to "
            "a table or file there and pass its name."
        )
    if hasattr(frame, "to_arrow"):  # polars
        frame = frame.to_arrow()
    if not isinstance(frame, pa.Table) and not hasattr(frame, "iloc"):
        raise ArgumentsInvalid(
            f"input_source is a {type(frame).__name__}. Pass the name of a file or table, a pandas data frame or a "
            "pyarrow table."
        )
    rows = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink)
    content = sink.getvalue()
    file = home() / "inference" / "frames" / f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return str(file)


def _refuse_for_remote(request: InferenceRequest, tracking_uri: str | None) -> None:
    """Refuse what a deployment would ignore, or show to everybody who sees its runs."""
    if tracking_uri is not None:
        raise ArgumentsInvalid(
            f"tracking_uri is {redacted(tracking_uri)!r}, but with trigger_remote=True the deployment answers from its "
            "own registry. Leave it out, or leave trigger_remote out to run here."
        )
    for name, value in request.model_dump(mode="json", include={"input_source", "output_table"}).items():
        if without_passwords(value) != value:
            raise ArgumentsInvalid(
                f"{name} {without_passwords(value)!r} carries a password or signature, and the deployment keeps a "
                "run's configuration for everybody to see. Add the database to the file that LLM_ASSETS_CATALOGS "
                "names there and pass catalog.schema.table, or pass a file that the deployment can read."
            )


def _remotely(request: InferenceRequest, api: DagsterAPI, log: Log) -> InferenceResult:
    job, deployed = deployed_job(api, request.model_name, "_run_inference")
    config = request.model_dump(mode="json", exclude_unset=True)
    run = run_to_end(api, job, {"ops": {op_name(deployed["model"]): {"config": {"request": config}}}}, log)
    return _result(request, run.outputs["result"][RESULT], run.run_id, {"run": api.run_link(run.run_id)})


def _result(
    request: InferenceRequest, told: Mapping[str, Any], run_id: str | None, links: Mapping[str, str]
) -> InferenceResult:
    return InferenceResult(
        model_name=told["model_name"],
        model_version=told["model_version"],
        output_table=request.output_table,
        rows=told["usage"]["rows"],
        answered_rows=told["usage"]["answered_rows"],
        failed_rows=told["failed_rows"],
        usage=told["usage"],
        parameters=tuple(Parameter(*entry) for entry in told["parameters"]),
        answers=Path(told["answers"]),
        run_id=run_id,
        links=links,
    )
