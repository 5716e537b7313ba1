"""How candidates are compared: which held-out rows, which metrics, and what counts as better."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config
from llm_assets.engine.tasks import EngineConfig, GenerationConfig
from llm_assets.evaluation.sql_sandbox import SqlSandboxConfig

MetricName = Literal["exact_match", "normalised_match", "token_f1", "sql_execution"]
SCORE_OF: dict[str, str] = {
    "exact_match": "exact_match",
    "normalised_match": "normalised_match",
    "token_f1": "token_f1",
    "sql_execution": "execution_accuracy",
}


class EvaluationConfig(Config):
    """The `evaluation` block of a lineage."""

    rows: int = Field(default=200, ge=2, description="Held-out test rows answered by every candidate, at most.")
    seed: int = Field(default=0, ge=0, description="Chooses the rows and seeds the bootstrap.")
    metrics: tuple[MetricName, ...] = Field(
        default=("exact_match",), min_length=1, description="The first is the primary metric: the one the gates read."
    )
    generation: GenerationConfig = Field(
        default=GenerationConfig(), description="How answers are generated; registered as the model's defaults."
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="Sizes of the inference engine.")
    min_improvement: float = Field(
        default=0.0, ge=0, le=1, description="The merged model must beat the base by this much on the primary metric."
    )
    min_recovery: float = Field(
        default=0.9, ge=0, le=1, description="Share of the merged model's primary metric each variant should keep."
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind every interval.")
    sql: SqlSandboxConfig = Field(default=SqlSandboxConfig(), description="Limits of sql_execution.")
    sql_context_column: str = Field(
        default="sql_context", description="Kept column (format.keep_columns) with the row's CREATE and INSERT text."
    )

    @model_validator(mode="after")
    def _no_metric_twice(self) -> Self:
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics {list(self.metrics)} names one twice. Keep each once; the first is the primary.")
        return self

    @property
    def primary(self) -> str:
        """Scoreboard column of the primary metric."""
        return SCORE_OF[self.metrics[0]]
