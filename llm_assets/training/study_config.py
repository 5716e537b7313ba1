"""Which training parameters a study searches, how many tokens each trial gets and when it is cut short.

A trial's budget is counted in packs of tokens, not in steps, so that trials of different batch sizes compare. They are
reported at the same shares of it: evaluation 1, 2, ... of `evaluations`, whatever the step.
"""

import os
import re
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config
from llm_assets.training.search_space import (
    SET_BY_THE_STUDY,
    WITHOUT_EFFECT,
    Choices,
    Range,
    Space,
    StudyConfigInvalid,
    own_values,
    require_searchable,
)
from llm_assets.training.training_config import TrainingConfig

__all__ = ["Budget", "StudyConfig", "StudyConfigInvalid"]
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Budget:
    """What every trial of a study gets.

    Attributes:
        packs: Packs of tokens per trial, at most.
        evaluations: Evaluations per trial.
    """

    packs: int
    evaluations: int

    def steps(self, config: TrainingConfig) -> tuple[int, int]:
        """Optimiser steps of a trial with this config, and steps from one evaluation to the next."""
        every = max(1, self.packs // (config.packs_per_step * self.evaluations))
        return every * self.evaluations, every


class StudyConfig(Config):
    """Settings of a hyperparameter study; the first trial always has the parameters of the YAML's training block."""

    trials: int = Field(
        default=8, ge=1, description="Trials, the first one included. 1 trains the YAML's own parameters only."
    )
    space: Space = Field(
        default_factory=lambda: {
            "learning_rate": Range(low=1e-5, high=1e-3, log=True),
            "rank": Choices(choices=(8, 16, 32, 64)),
        },
        description="Any field of training but "
        f"{', '.join(sorted(SET_BY_THE_STUDY | WITHOUT_EFFECT))}, each with {{low, high, log, step}} or {{choices}}.",
    )
    budget_share: float = Field(
        default=0.25, gt=0, le=1, description="Share of the full run's tokens that each trial gets."
    )
    trial_tokens: int | None = Field(
        default=None, ge=1, description="Tokens each trial trains on, instead of budget_share; to within one step."
    )
    evaluations: int = Field(
        default=4, ge=1, description="Evaluations per trial, at equal shares of its tokens; each may prune it."
    )
    sampler: Literal["tpe", "random"] = Field(
        default="tpe", description="tpe: learns from the trials so far; random: does not."
    )
    sampler_startup_trials: int = Field(default=4, ge=1, description="Trials drawn at random before tpe learns.")
    pruner: Literal["median", "hyperband", "successive_halving", "none"] = Field(
        default="median",
        description="median: cut what is worse than the median so far; successive_halving: keep the best share at "
        "each evaluation; hyperband: several such brackets, from strict to lenient.",
    )
    pruner_startup_trials: int = Field(
        default=2, ge=1, description="Trials that run whole before the median pruner acts."
    )
    reduction_factor: int = Field(
        default=2, ge=2, description="Successive halving and hyperband keep one trial in this many per rung."
    )
    parallel_trials: int | Literal["auto"] = Field(
        default=1,
        description="Trials at a time, each on GPUs or a share of the CPU of its own; auto: one per GPU. Above 1 the "
        "trials depend on which ends first.",
    )
    storage_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of a database that keeps the study; empty: a journal file in the workspace. Write "
        "the password as ${NAME}: it is read from the environment of the step.",
    )
    warm_start: bool = Field(
        default=True, description="When data or space changed, also try the best parameters of the study before."
    )
    log_to_mlflow: bool = Field(default=True, description="A run for the study in MLflow, with one per trial in it.")
    seed: int = Field(default=0, ge=0, description="Seed of the sampler.")

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        require_searchable(self.space)
        if isinstance(self.parallel_trials, int) and self.parallel_trials < 1:
            raise StudyConfigInvalid(f"study.parallel_trials is {self.parallel_trials}. Give 1 or more, or auto.")
        if self.storage_url is not None and "://" not in self.storage_url:
            raise StudyConfigInvalid(
                "study.storage_url is no URL. Write postgresql+psycopg2://user:${NAME}@host/database or "
                "sqlite:////absolute/path.db, or leave it out."
            )
        return self

    def require_defaults(self, training: TrainingConfig) -> dict[str, Any]:
        """The training block's own values of the searched parameters.

        Raises:
            StudyConfigInvalid: one lies outside its range, so the first trial could not have it.
        """
        return own_values(self.space, training)

    def budget(self, training: TrainingConfig, packs: int, tokens_per_pack: float) -> Budget:
        """What each trial gets on a dataset.

        Args:
            training: The training block.
            packs: Packs of the dataset.
            tokens_per_pack: Their mean tokens.
        """
        full = training.steps(packs) * training.packs_per_step
        wanted = self.trial_tokens / tokens_per_pack if self.trial_tokens else self.budget_share * full
        largest_step = max(self._packs_per_step(training))
        fewest_steps = max(1, int(wanted) // largest_step)
        return Budget(max(largest_step, int(wanted)), min(self.evaluations, fewest_steps))

    def resolved_storage_url(self) -> str | None:
        """The URL with every `${NAME}` replaced from the environment; never log it.

        Raises:
            StudyConfigInvalid: a name is not set.
        """
        missing = [name for name in REFERENCE.findall(self.storage_url or "") if name not in os.environ]
        if missing:
            raise StudyConfigInvalid(
                f"study.storage_url refers to {', '.join(missing)}, which the environment of this step does not have. "
                "Set it (on Kubernetes as a secret of the step's pod)."
            )
        return self.storage_url and REFERENCE.sub(lambda found: os.environ[found[1]], self.storage_url)

    def _packs_per_step(self, training: TrainingConfig) -> list[int]:
        """Packs per optimiser step at every corner of the space."""
        batch = [1 if packs == "auto" else packs for packs in self._offered("batch_packs", training)]
        accumulation = self._offered("accumulation_steps", training)
        return [packs * steps for packs in batch for steps in accumulation]

    def _offered(self, name: str, training: TrainingConfig) -> tuple[Any, ...]:
        return self.space[name].offered() if name in self.space else (getattr(training, name),)
