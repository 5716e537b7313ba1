"""Which training parameters a study searches, how long each trial runs and when it is cut short."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.training.training_config import TrainingConfig

TUNABLE = (
    "rank", "alpha", "dropout", "use_rslora", "use_dora", "learning_rate", "warmup_share", "scheduler", "weight_decay",
    "max_grad_norm",
)  # fmt: skip


class StudyConfigInvalid(LLMAssetsError):
    """A study searches something it cannot, or leaves out the parameters the YAML already has."""


class Range(Config):
    """Numbers from low to high, both included; whole numbers when both ends are."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    log: bool = Field(default=False, description="Draw on a logarithmic scale.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise StudyConfigInvalid(
                f"study.space has the range {self.low} to {self.high}{' on a log scale' if self.log else ''}. "
                "low must be below high, and above 0 for a log scale."
            )
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        return isinstance(value, (int, float)) and self.low <= value <= self.high


class Choices(Config):
    """A few named values."""

    choices: tuple[bool | int | float | str, ...] = Field(min_length=1, description="The values to choose from.")

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return value in self.choices


class StudyConfig(Config):
    """Settings of a hyperparameter study; the first trial always has the parameters of the YAML's training block."""

    trials: int = Field(
        default=8, ge=1, description="Trials, the first one included. 1 trains the YAML's own parameters only."
    )
    space: dict[str, Range | Choices] = Field(
        default_factory=lambda: {
            "learning_rate": Range(low=1e-5, high=1e-3, log=True),
            "rank": Choices(choices=(8, 16, 32, 64)),
        },
        description=f"Parameter name to {{low, high, log}} or {{choices}}; any of {', '.join(TUNABLE)}.",
    )
    budget_share: float = Field(
        default=0.25, gt=0, le=1, description="Share of the full run's steps that each trial gets."
    )
    evaluations: int = Field(default=4, ge=1, description="Evaluations per trial; after each a trial may be pruned.")
    pruner: Literal["median", "successive_halving", "none"] = Field(
        default="median",
        description="median: cut what is worse than the median so far; successive_halving: keep the best share.",
    )
    pruner_startup_trials: int = Field(
        default=2, ge=1, description="Trials that run whole before the median pruner acts."
    )
    reduction_factor: int = Field(
        default=2, ge=2, description="Successive halving keeps one trial in this many per rung."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the sampler.")

    @model_validator(mode="after")
    def _tunable(self) -> Self:
        unknown = sorted(set(self.space) - set(TUNABLE))
        if unknown:
            raise StudyConfigInvalid(
                f"study.space names {', '.join(unknown)}, which a study does not search: trials must differ in what "
                f"is learned from the same tokens. Use any of {', '.join(TUNABLE)}."
            )
        return self

    def require_defaults(self, training: TrainingConfig) -> dict[str, Any]:
        """The training block's own values of the searched parameters.

        Raises:
            StudyConfigInvalid: one lies outside its range, so the first trial could not have it.
        """
        own = {name: training.lora_alpha if name == "alpha" else getattr(training, name) for name in self.space}
        outside = [name for name, value in own.items() if not self.space[name].holds(value)]
        if outside:
            name = outside[0]
            raise StudyConfigInvalid(
                f"training.{name} is {own[name]}, which study.space.{name} does not hold "
                f"({self.space[name].model_dump()}). The first trial trains the YAML's own value: widen the range."
            )
        return own

    def trial_steps(self, full_steps: int) -> int:
        """Optimiser steps of one trial."""
        return max(1, round(self.budget_share * full_steps))

    def steps_per_evaluation(self, full_steps: int) -> int:
        """Optimiser steps between two evaluations of a trial."""
        return max(1, self.trial_steps(full_steps) // self.evaluations)
