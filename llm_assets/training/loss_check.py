"""Whether a finished training run taught the model anything worth keeping."""

import math

from llm_assets.core import CheckResult
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport


def check_loss(report: TrainingReport, config: TrainingConfig) -> CheckResult:
    """The losses are finite, the training loss fell, and the evaluation loss is below the base's and the bound."""
    evaluation, base = report.evaluation_loss, report.base_evaluation_loss
    problems = [
        text
        for wrong, text in (
            (not _finite(report), "a loss is not finite"),
            (len(report.history) > 1 and report.final_loss >= report.first_loss, "the training loss did not fall"),
            (evaluation is not None and base is not None and evaluation >= base, "the base model is as good"),
            (
                (evaluation or 0) > (config.max_evaluation_loss or math.inf),
                f"training.max_evaluation_loss is {config.max_evaluation_loss}",
            ),
        )
        if wrong
    ]
    return CheckResult(
        passed=not problems,
        summary=f"{_evaluated(report)}; training loss {report.first_loss:.4f} to {report.final_loss:.4f}."
        + (f" Refused: {'; '.join(problems)}." if problems else ""),
        numbers={
            **({"evaluation_loss": evaluation, "base_evaluation_loss": base} if evaluation and base else {}),
            "first_loss": report.first_loss,
            "final_loss": report.final_loss,
        },
    )


def _evaluated(report: TrainingReport) -> str:
    if report.evaluation_loss is None or report.base_evaluation_loss is None:
        return "Trained without evaluation (training.evaluation_rows is 0)"
    half = report.evaluation_half_width
    interval = f" ± {half:.4f}" if half is not None else ""
    return (
        f"Evaluation loss {report.evaluation_loss:.4f}{interval} nats per token, base {report.base_evaluation_loss:.4f}"
    )


def _finite(report: TrainingReport) -> bool:
    evaluated = [loss for loss in (report.evaluation_loss, report.base_evaluation_loss) if loss is not None]
    return all(math.isfinite(loss) for loss in [*evaluated, *(row["loss"] for row in report.history)])
