"""The `tokenization` block of a lineage: how conversations become tokens, and what their checks allow."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config


class TokenCheckConfig(Config):
    """Bounds of the token checks."""

    min_mean_length_tokens: float = Field(default=1, ge=0, description="token_stats: lowest mean row length.")
    max_mean_length_tokens: float | None = Field(
        default=None, gt=0, description="token_stats: highest mean row length."
    )
    max_drift: float = Field(
        default=0.5, gt=0, description="token_stats: largest relative change of the mean length since the last dataset."
    )
    max_length_psi: float = Field(
        default=0.25,
        gt=0,
        description="token_stats: largest population stability index of prompt and of completion lengths against the "
        "last dataset, beyond what chance gives; 0.1 is a shift worth a look, 0.25 another population.",
    )
    min_supervised_share: float = Field(
        default=0.005, ge=0, le=1, description="label_mask: lowest share of tokens with loss."
    )
    max_supervised_share: float = Field(
        default=0.995, ge=0, le=1, description="label_mask: highest share of tokens with loss."
    )
    max_dropped_share: float = Field(
        default=0.1, ge=0, le=1, description="truncation_share: most rows dropped as too long, or cut to fit."
    )
    max_refused_share: float = Field(
        default=0.05, ge=0, le=1, description="label_mask: most rows without exact labels."
    )
    parity_rows: int = Field(default=50, ge=1, description="template_parity, label_mask: rows compared per split.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_mean_length_tokens is not None and self.max_mean_length_tokens < self.min_mean_length_tokens:
            raise ValueError(
                f"max_mean_length_tokens {self.max_mean_length_tokens} is below min_mean_length_tokens "
                f"{self.min_mean_length_tokens}; swap them"
            )
        if self.max_supervised_share < self.min_supervised_share:
            raise ValueError(
                f"max_supervised_share {self.max_supervised_share} is below min_supervised_share "
                f"{self.min_supervised_share}; swap them"
            )
        return self


class TokenizationConfig(Config):
    """How conversations become tokens."""

    max_length_tokens: int = Field(default=2048, ge=8, description="Longest row; see too_long for longer ones.")
    pack_length_tokens: int | None = Field(
        default=None, ge=8, description="Tokens per pack of training rows; max_length_tokens when not given."
    )
    too_long: Literal["drop", "cut_oldest_turns", "refuse"] = Field(
        default="drop",
        description="What becomes of longer rows: dropped whole, cut turn by turn from the oldest on (the system "
        "message and the last question with its answer stay whole), or the run is refused.",
    )
    supervise: Literal["all_turns", "last_turn"] = Field(
        default="all_turns",
        description="Whether every assistant turn carries loss, or the last alone; a message with `train: false` or "
        "`weight: 0` never does.",
    )
    template: str = Field(
        default="model", description="model (the base model's own), chatml, or the path of a Jinja chat template."
    )
    pad_token: str | None = Field(
        default=None, description="Existing token to pad with, where the tokenizer names none or its end-of-turn token."
    )
    seed: int = Field(default=0, description="Order of the packs.")
    processes: int = Field(default=1, ge=1, description="Processes that tokenize at once; the result is the same.")
    checks: TokenCheckConfig = Field(default=TokenCheckConfig(), description="Bounds of the dataset's checks.")

    @model_validator(mode="after")
    def _packs_hold_rows(self) -> Self:
        if self.capacity_tokens < self.max_length_tokens:
            raise ValueError(
                f"pack_length_tokens {self.capacity_tokens} is below max_length_tokens {self.max_length_tokens}, so "
                "the longest rows fit no pack; raise the former or lower the latter"
            )
        return self

    @property
    def capacity_tokens(self) -> int:
        """Tokens per pack."""
        return self.pack_length_tokens or self.max_length_tokens
