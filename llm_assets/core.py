"""The three leaf types every library package speaks: a frozen config, a user error and a check result.

They live in one file at the bottom so that `data`, `training` and the rest can share them without knowing each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen setting block of a lineage's YAML: unknown keys are refused, defaults are checked like given values."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LLMAssetsError(ValueError):
    """Something a user can cause and fix. The message states the offending value and the remedy.

    It is a ValueError so that a config's validator may raise it: pydantic collects those, and the loader of `defs.yaml`
    adds file and line.
    """


@dataclass(frozen=True)
class CheckResult:
    """Verdict of one pure check function, without any orchestrator type.

    Attributes:
        passed: Whether the checked artifact may be used.
        summary: One sentence for a person, with the deciding numbers.
        numbers: Plain Python scalars by stable snake_case name; they become plots.
        rows: Offending or sample rows, shown as a table; at most about 20.
        warn_only: A failure is worth a look but stops nothing.
    """

    passed: bool
    summary: str
    numbers: Mapping[str, float | int | str | bool] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    warn_only: bool = False
