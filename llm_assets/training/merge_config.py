"""How an adapter is merged and stored, and how far the result may be from what was trained."""

from typing import Literal

from pydantic import Field

from llm_assets.core import Config


class MergeConfig(Config):
    """How an adapter is merged and stored."""

    policy: Literal["dequantized", "original", "auto"] = Field(
        default="dequantized",
        description="dequantized: into the 4-bit weights as training saw them, for the modules that were in 4 bit; "
        "original: into the base's own weights; auto: whichever has the lower loss on validation rows, both measured.",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16",
        description="Stored type. float16 keeps 8 times more of a small adapter where values fit its range.",
    )
    equivalence_rows: int = Field(
        default=64, ge=1, description="Validation rows on which merged and adapter are compared, and policies chosen."
    )
    max_mean_kl: float = Field(
        default=0.02, gt=0, description="Mean KL divergence allowed between adapter and merged model, nats per token."
    )
    min_top1_agreement: float = Field(
        default=0.97, gt=0, le=1, description="Share of tokens on which both must rank the same token first."
    )
    max_loss_increase: float = Field(
        default=0.02, ge=0, description="Loss the merged model may have above the adapter's, nats per token."
    )
    greedy_prompts: int = Field(
        default=4,
        ge=0,
        description="Validation prompts that both models answer greedily, to compare the texts.",
    )
    greedy_tokens: int = Field(default=48, ge=1, description="Longest greedy answer, in tokens.")
    min_greedy_agreement: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of greedy tokens before the two answers part that is required; 0 reports it only, because "
        "one near tie changes all that follows.",
    )
