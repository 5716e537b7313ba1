"""The values a study may try for a training field, checked against that field before the first trial.

Whether a range is of whole numbers is decided by the field, not by how its ends are written. Every value that can be
checked alone is checked when the YAML loads; a combination that only some trials meet is that trial's failure.
"""

import json
import typing
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import optuna

SET_BY_THE_STUDY = frozenset(
    {"epochs", "max_steps", "evaluate_every_steps", "evaluation_rows", "early_stopping_patience", "max_evaluation_loss"}
)  # what makes trials comparable: all get the same tokens and the same rows

WITHOUT_EFFECT = frozenset({"processes", "sharding", "report_to", "save_every_steps"})  # on what a trial learns


class StudyConfigInvalid(LLMAssetsError):
    """A study searches something it cannot, or leaves out the parameters the YAML already has."""


class Range(Config):
    """Numbers from low to high, both included; whole numbers where the field takes whole numbers."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    log: bool = Field(default=False, description="Draw on a logarithmic scale.")
    step: int | float | None = Field(default=None, gt=0, description="Distance between values; not with log.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise StudyConfigInvalid(
                f"study.space has the range {self.low} to {self.high}{' on a log scale' if self.log else ''}. "
                "low must be below high, and above 0 for a log scale."
            )
        if self.step is not None and (self.log or not self._on_grid(self.high)):
            raise StudyConfigInvalid(
                f"study.space has the range {self.low} to {self.high} in steps of {self.step}"
                f"{' on a log scale' if self.log else ''}. high must be a whole number of steps above low, without log."
            )
        return self

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range, and on one of its steps."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and self._on_grid(value)

    def offered(self) -> tuple[Any, ...]:
        """The values that are checked against the field."""
        return (self.low, self.high) if self.step is None else (self.low, self.low + self.step, self.high)

    def _on_grid(self, value: float) -> bool:
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9 * max(1.0, abs(steps))


class Choices(Config):
    """A few named values."""

    choices: tuple[bool | int | float | str | tuple[str, ...] | None, ...] = Field(
        min_length=1, description="The values to choose from; null for a field that may be left empty."
    )

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)

    def offered(self) -> tuple[Any, ...]:
        """The values that are checked against the field."""
        return self.choices


Space = dict[str, Range | Choices]


def require_searchable(space: Space) -> None:
    """Check every entry against the training field it names.

    Raises:
        StudyConfigInvalid: the space is empty, names no field or one the study sets itself, or offers a value that the
            field does not take.
    """
    if not space:
        raise StudyConfigInvalid(
            "study.space is empty. Name a training field with {low, high} or {choices}, or leave space out to search "
            "learning_rate and rank; trials: 1 trains the YAML's own parameters only."
        )
    for name, values in space.items():
        _require_field(name)
        if isinstance(values, Range) and number_type(name) is None:
            raise StudyConfigInvalid(
                f"study.space.{name} is a range, and training.{name} takes no numbers. Use choices: [...]."
            )
        for value in values.offered():
            _require_taken(name, value)


def number_type(name: str) -> type[int] | type[float] | None:
    """Whether a training field takes whole numbers, numbers, or neither."""
    annotation = TrainingConfig.model_fields[name].annotation
    options = typing.get_args(annotation) or (annotation,)
    return float if float in options else int if int in options else None


def own_values(space: Space, training: TrainingConfig) -> dict[str, Any]:
    """The training block's own values of the searched fields: the first trial.

    Raises:
        StudyConfigInvalid: one lies outside its range, or a value of the space contradicts the rest of the block.
    """
    if training.evaluation_rows == 0:
        raise StudyConfigInvalid(
            "training.evaluation_rows is 0, and a study judges even a single trial by its evaluation. Set "
            "evaluation_rows to 1 or more (default 200), and split.validation so that there are such rows."
        )
    own = {name: getattr(training, name) for name in space}
    if "alpha" in own and not space["alpha"].holds(own["alpha"]):
        own["alpha"] = training.lora_alpha
    for name, value in own.items():
        if not space[name].holds(value):
            raise StudyConfigInvalid(
                f"training.{name} is {value!r}, which study.space.{name} does not hold "
                f"({space[name].model_dump(exclude_none=True)}). The first trial trains the YAML's own value: widen "
                "the range."
            )
    for name, values in space.items():
        for value in values.offered():
            try:
                training.with_parameters({name: value})
            except ValidationError as error:
                raise StudyConfigInvalid(
                    f"study.space.{name} offers {value!r}, which the training block does not take: {_first(error)}"
                ) from error
    return own


def held_values(space: Space, parameters: dict[str, Any]) -> dict[str, Any]:
    """Those of some parameters that the space still holds."""
    return {name: value for name, value in parameters.items() if name in space and space[name].holds(value)}


def suggest(trial: "optuna.Trial", space: Space) -> None:
    """Let the trial choose a value for every entry."""
    for name, values in space.items():
        if isinstance(values, Choices):
            trial.suggest_categorical(name, [stored(choice) for choice in values.choices])
        elif number_type(name) is int:
            trial.suggest_int(name, int(values.low), int(values.high), step=int(values.step or 1), log=values.log)
        else:
            trial.suggest_float(name, values.low, values.high, step=values.step, log=values.log)


def stored(value: Any) -> Any:
    """A value as Optuna's storages keep it: a list of names as JSON text."""
    return json.dumps(value) if isinstance(value, (tuple, list)) else value


def restored(space: Space, parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as a training config takes them, in order of name."""
    found = {}
    for name, value in sorted(parameters.items()):
        values = space[name]
        lists = [c for c in values.choices if isinstance(c, tuple)] if isinstance(values, Choices) else []
        found[name] = next((list(choice) for choice in lists if stored(choice) == value), value)
    return found


def _require_field(name: str) -> None:
    if name in SET_BY_THE_STUDY:
        raise StudyConfigInvalid(
            f"study.space names {name}, which the study sets for all trials alike: they compare on the same tokens and "
            "the same validation rows. Use study.budget_share, trial_tokens and evaluations, and search another field."
        )
    if name in WITHOUT_EFFECT:
        raise StudyConfigInvalid(
            f"study.space names {name}, which changes where and how a run is done and not what it learns: every trial "
            "would score the same. Search another field."
        )
    if name not in TrainingConfig.model_fields:
        near = get_close_matches(name, TrainingConfig.model_fields, n=3, cutoff=0.5)
        meant = (
            f"Did you mean {' or '.join(near)}?" if near else f"Fields are {', '.join(TrainingConfig.model_fields)}."
        )
        raise StudyConfigInvalid(f"study.space names {name}, which is no field of training. {meant}")


def _require_taken(name: str, value: Any) -> None:
    try:
        _field_model(name).model_validate({name: value}, strict=True)
    except ValidationError as error:
        raise StudyConfigInvalid(
            f"study.space.{name} offers {value!r}, which training.{name} does not take: {_first(error)} "
            f"It is: {TrainingConfig.model_fields[name].description}"
        ) from error


def _first(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".") + "."


@cache
def _field_model(name: str) -> type[BaseModel]:
    """A model of one training field alone, with its limits."""
    field = TrainingConfig.model_fields[name]
    return create_model("Searched", **{name: (field.annotation, field)})  # type: ignore[call-overload]
