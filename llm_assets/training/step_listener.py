"""What a step hears from the first of the processes it has started to train, and answers."""

import threading
from collections.abc import Callable, Mapping

from llm_assets.core import LLMAssetsError
from llm_assets.training.forking import process_context
from llm_assets.training.training_report import TrainingReport

Report = Callable[[int, Mapping[str, float]], None]


class Listener:
    """The step's end of the pipe from the first process: passes on what it says, and answers its evaluations."""

    def __init__(
        self,
        log: Callable[[str], None],
        on_evaluation: Callable[[int, float], None] | None,
        report: Report | None,
    ) -> None:
        self._ours, self.theirs = process_context().Pipe()
        self._log, self._on_evaluation, self._report = log, on_evaluation, report
        self._ended = threading.Event()
        self._refusal: BaseException | None = None

    def hear_while(self, run: Callable[[], dict[int, TrainingReport]]) -> dict[int, TrainingReport]:
        """Answer until the run has ended; what `on_evaluation` raised ends it and is raised here."""
        thread = threading.Thread(target=self._hear, daemon=True)
        thread.start()
        try:
            return run()
        except LLMAssetsError:
            if self._refusal:
                raise self._refusal from None
            raise
        finally:
            self._ended.set()
            thread.join()

    def _hear(self) -> None:
        while self._ours.poll(0.05) or not self._ended.is_set():
            if not self._ours.poll(0):
                continue
            kind, *content = self._ours.recv()
            if kind == "log":
                self._log(*content)
            elif kind == "curves" and self._report:
                self._report(*content)
            elif kind == "evaluation":
                self._ours.send(self._answer(*content))

    def _answer(self, step: int, loss: float) -> bool:
        try:
            if self._on_evaluation:
                self._on_evaluation(step, loss)
        except BaseException as refusal:  # raised again in the step's own thread
            self._refusal = refusal
            return False
        return True
