"""Whether a finished training run taught the model anything worth keeping."""

import math

from llm_assets.core import CheckResult
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import TrainingReport


def check_loss(report: TrainingReport, config: TrainingConfig) -> CheckResult:
    """The losses are finite, the training loss fell, and the evaluation loss is below the base's and the bound."""
    problems = [
        text
        for wrong, text in (
            (not _finite(report), "a loss is not finite"),
            (len(report.history) > 1 and report.final_loss >= report.first_loss, "the training loss did not fall"),
            (report.evaluation_loss >= report.base_evaluation_loss, "the base model is as good"),
            (
                report.evaluation_loss > (config.max_evaluation_loss or math.inf),
                f"training.max_evaluation_loss is {config.max_evaluation_loss}",
            ),
        )
        if wrong
    ]
    return CheckResult(
        passed=not problems,
        summary=(
            f"Evaluation loss {report.evaluation_loss:.4f} nats per token, base {report.base_evaluation_loss:.4f}; "
            f"training loss {report.first_loss:.4f} to {report.final_loss:.4f}."
            + (f" Refused: {'; '.join(problems)}." if problems else "")
        ),
        numbers={
            "evaluation_loss": report.evaluation_loss,
            "base_evaluation_loss": report.base_evaluation_loss,
            "first_loss": report.first_loss,
            "final_loss": report.final_loss,
        },
    )


def _finite(report: TrainingReport) -> bool:
    losses = [report.evaluation_loss, report.base_evaluation_loss, *(row["loss"] for row in report.history)]
    return all(math.isfinite(loss) for loss in losses)
