"""Answer the rows of a file or table with a registered version, exactly once per row and version.

What a partition of a lineage is, a table is here: answers are committed as they come, kept while row, prompt, model and
sampling are the same, and joined to their rows. A killed call continues, and a repeated one starts no engine.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_assets.core import LLMAssetsError
from llm_assets.data.ingestion import ROWS
from llm_assets.data.named_source import source_named
from llm_assets.data.rendering import Renderer
from llm_assets.data.sources import SourceConfig
from llm_assets.engine.tasks import EngineConfig, GenerationConfig, GenerationTask, engine_for, read_engine_report
from llm_assets.inference.checks import complete
from llm_assets.inference.destination import Destination, merge_answers, refuse_unfit
from llm_assets.inference.inputs import ASKED, read_rows
from llm_assets.inference.outputs import ANSWERED as ANSWER_COLUMNS
from llm_assets.inference.outputs import ModelInUse, finish_partition, prepare_partition
from llm_assets.inference.settings import InferenceRequest, Parameter, planned, resolve
from llm_assets.registry.versions import RegisteredVersion, load_version

Generate = Callable[[Sequence[GenerationTask], GenerationConfig, EngineConfig], None]
ANSWERED = "answered"
KEPT_ANSWERS = 3  # of the latest calls, so that their results stay readable


class OutputBusy(LLMAssetsError):
    """Another call is answering for the same output."""


class AnswersIncomplete(LLMAssetsError):
    """The engine left rows without an answer."""


@dataclass(frozen=True)
class BatchAnswers:
    """What a call did.

    Attributes:
        version: The version that answered.
        answers: Parquet file with this call's rows and answers.
        usage: `rows`, `answered_rows`, `kept_rows`, `prompt_tokens`, `completion_tokens`, `seconds`, …
        failed_rows: Rows whose `error` says why they have no answer.
        destination_rows: Rows the output holds now; None without one.
        parameters: Every value used, and its origin.
    """

    version: RegisteredVersion
    answers: Path
    usage: Mapping[str, Any]
    failed_rows: int
    destination_rows: int | None
    parameters: tuple[Parameter, ...]


def answer_table(
    request: InferenceRequest,
    generate: Generate,
    *,
    home: Path,
    gpus: list[str] | None,
    log: Callable[[str], None],
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> BatchAnswers:
    """Answer every row of the request's input once and put the answers into its output.

    Args:
        request: What was asked.
        generate: Runs generation tasks, here or in a pod.
        home: Directory for work and for the answers a later call takes over.
        gpus: As in `settings.resolve`.
        log: Receives progress.
        tracking_uri: MLflow's; None takes the environment's.
        registry_uri: Where the name is registered, if elsewhere; None as in `TrackingStore.resolve`.

    Raises:
        VersionUnknown, VariantUnknown, DevicesMissing, TierTooSmall, DestinationInvalid, CatalogUnknown: before work.
        NotPromoted: likewise; no version was named, and the one in use has no passed gate.
        SourceMissing, SourceEmpty, SourceUnreadable, RowMissingColumn: the rows cannot be read.
        OutputBusy: another call holds the output.
        AnswersIncomplete: the engine lost rows; calling again asks for those.
    """
    version = load_version(request.model_name, request.version or "champion", tracking_uri, registry_uri)
    if request.version is None:
        version.require_promoted()  # the alias may have been moved by hand; who names a version means it
    resolved = resolve(request, version, gpus)
    destination = Destination.parse(request.output_table) if request.output_table else None
    model = ModelInUse(version.name, version.version, version.model_id, resolved.variant, resolved.generation)
    directory = version.variant_directory(resolved.variant)
    if destination:
        refuse_unfit(destination)
    with _exclusive(home / "inference" / _key(request, destination)) as state:
        source = SourceConfig.model_validate({"name": "rows", **source_named(request.input_source)})
        inputs = _fresh(state / "inputs")
        report = read_rows(source, resolved.format, inputs, log)
        if destination:  # before the engine's work, not after it
            refuse_unfit(destination, inputs / ROWS, {*(field.name for field in ASKED), *ANSWER_COLUMNS.names})
        log(f"{report.rows:,} rows, {report.refused:,} of them cannot be asked")
        requests = state / "requests.parquet"
        requests.unlink(missing_ok=True)
        previous = (state / ANSWERED) if (state / ANSWERED).exists() else None
        renderer = Renderer.from_directory(directory)
        ready = prepare_partition("rows", inputs, renderer, model, previous=previous, requests=requests)
        log(f"{len(ready.kept):,} answers taken over, {ready.to_answer:,} to ask")
        work = state / "work" / _work_digest(model, requests)
        parameters = list(resolved.parameters)
        if ready.to_answer:
            task = GenerationTask("rows", directory, engine_for(directory), requests, work)
            generate([task], resolved.generation, resolved.engine)
            parameters += planned(read_engine_report(work), request)
        usage = finish_partition(ready, model, work, _fresh(state / "staged"))
        answers = _publish(state, inputs, model)
        failed = pq.read_table(answers, columns=["error"])["error"]
        held = merge_answers(answers, destination) if destination else None
    return BatchAnswers(version, answers, usage, len(failed) - failed.null_count, held, tuple(parameters))


def _publish(state: Path, inputs: Path, model: ModelInUse) -> Path:
    """Make the staged answers the current ones in one step, if they are all there."""
    came_in, came_out = (
        pq.read_table(directory / ROWS, columns=["row_id"])["row_id"].to_pylist()
        for directory in (inputs, state / "staged")
    )
    verdict = complete({"rows": came_in}, {"rows": came_out})
    if not verdict.passed:
        raise AnswersIncomplete(
            f"{model.name} version {model.version}: {verdict.rows[0]}. Run the call again; only those rows are asked."
        )
    content = hashlib.sha256((state / "staged" / ROWS).read_bytes()).hexdigest()[:16]
    target = state / f"answers-{content}"
    if not target.exists():
        (state / "staged").replace(target)
    os.utime(target)
    link = state / f"{ANSWERED}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.replace(state / ANSWERED)
    newest_first = sorted(state.glob("answers-*"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in (*newest_first[KEPT_ANSWERS:], *(state / "work").glob("*")):
        shutil.rmtree(old, ignore_errors=True)
    return target / ROWS


@contextmanager
def _exclusive(state: Path) -> Iterator[Path]:
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputBusy(
                f"Another call is writing the same output (lock {lock.name}). Wait for its end, or name another output."
            ) from error
        yield state


def _fresh(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _key(request: InferenceRequest, destination: Destination | None) -> str:
    """Calls with the same output share their state; without one, calls on the same input with the same model."""
    told = destination.identity if destination else [request.model_name, request.variant, request.input_source]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _work_digest(model: ModelInUse, requests: Path) -> str:
    asked = requests.read_bytes() if requests.exists() else b""
    return hashlib.sha256(json.dumps(model.as_json(), sort_keys=True).encode() + asked).hexdigest()[:16]
