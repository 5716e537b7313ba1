"""The loop between an engine and a ledger: keep the engine full, commit what is finished, survive bad rows.

A new row is admitted as soon as one leaves, so there is no wait for the slowest row of a micro-batch; a commit is only
a point in time. A row the engine refuses becomes an answer with an error and the others go on.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_assets.workers.answers import Answer, Request, TaskLedger

COMMIT_SECONDS = 60.0  # a slow model must not hold an hour of answers in memory
PROGRESS_SECONDS = 10.0


class Interrupted(Exception):
    """The worker was asked to stop."""


class RowRefused(Exception):
    """The engine cannot take this row, whatever the others do."""


@dataclass(frozen=True)
class Completion:
    """What an engine made of one row."""

    row_id: str
    text: str
    finish_reason: str
    completion_tokens: int
    cached_prompt_tokens: int
    error: str | None = None


class Engine(Protocol):
    """A loaded model that takes rows and gives them back finished, in any order."""

    model: str
    capacity: int
    context_tokens: int

    def submit(self, row_id: str, token_ids: list[int], generation: dict[str, Any], seed: int) -> None:
        """Take one row; raises `RowRefused` when it can never be served."""
        ...

    def step(self) -> list[Completion]:
        """Work for a moment and return the rows that finished."""
        ...

    def report(self) -> dict[str, Any]:
        """Engine, version, device, sizes and start-up seconds."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def serve(
    name: str,
    engine: Engine,
    waiting: Sequence[Request],
    ledger: TaskLedger,
    *,
    generation: dict[str, Any],
    micro_batch_rows: int,
    log: Callable[[str], None],
    stop: Callable[[], bool],
) -> None:
    """Answer every waiting row and commit it; raises `Interrupted`, after a last commit, once `stop` says so."""
    queue = list(reversed(waiting))
    in_flight: dict[str, tuple[Request, float]] = {}
    batch = _Batch(ledger)
    last_progress, answered = time.monotonic(), 0
    while queue or in_flight:
        while queue and len(in_flight) < engine.capacity:
            request = queue.pop()
            refusal = _submit(engine, request, generation)
            if refusal is None:
                in_flight[request.row_id] = (request, time.monotonic())
            else:
                batch.answers.append(refusal)
                answered += 1
        for completion in engine.step() if in_flight else ():
            batch.add(completion, *in_flight.pop(completion.row_id))
            answered += 1
        if stop():
            batch.commit()
            raise Interrupted(f"{name} has {len(queue) + len(in_flight)} rows left")
        if len(batch.answers) >= micro_batch_rows or batch.age_seconds() > COMMIT_SECONDS:
            batch.commit()
        if time.monotonic() - last_progress > PROGRESS_SECONDS:
            last_progress = time.monotonic()
            log(f"{name}: {answered} of {len(waiting)} rows answered.")
    batch.commit()


class _Batch:
    """Answers since the last commit, and the time they took."""

    def __init__(self, ledger: TaskLedger) -> None:
        self._ledger = ledger
        self._reset()

    def _reset(self) -> None:
        self.answers: list[Answer] = []
        self._cached_prompt_tokens = 0
        self._since = time.monotonic()

    def age_seconds(self) -> float:
        """Seconds since the last commit; 0 while there is nothing to commit."""
        return time.monotonic() - self._since if self.answers else 0.0

    def add(self, completion: Completion, request: Request, started: float) -> None:
        """Turn an engine's completion into an answer."""
        self._cached_prompt_tokens += completion.cached_prompt_tokens
        self.answers.append(
            Answer(
                row_id=completion.row_id,
                completion=completion.text,
                finish_reason=completion.finish_reason,
                prompt_tokens=request.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                error=completion.error,
                latency_seconds=time.monotonic() - started,
            )
        )

    def commit(self) -> None:
        """Hand the answers to the ledger."""
        if self.answers:
            self._ledger.commit(self.answers, time.monotonic() - self._since, self._cached_prompt_tokens)
            self._reset()


def _submit(engine: Engine, request: Request, generation: dict[str, Any]) -> Answer | None:
    """Hand a row to the engine; returns its answer at once when it cannot be served."""
    refusal = ""
    if request.prompt_tokens >= engine.context_tokens:
        refusal = (
            f"The prompt has {request.prompt_tokens} tokens and leaves no room for an answer in a context of "
            f"{engine.context_tokens}."
        )
    else:
        try:
            seed = row_seed(generation["seed"], request.row_id)
            engine.submit(request.row_id, request.token_ids(), generation, seed)
        except RowRefused as reason:
            refusal = str(reason)
    return Answer(request.row_id, "", "error", request.prompt_tokens, 0, refusal, 0.0) if refusal else None


def row_seed(seed: int, row_id: str) -> int:
    """A row's own sampling seed: the same whichever rows share its batch and however often the job was restarted."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id}".encode()).digest()[:4], "big") & 0x7FFFFFFF
