"""How one adapter is trained: every number that decides its bytes, refused here rather than an hour into a run.

Work is counted in packs and optimiser steps, never in padded batches, so a step costs the same whatever rows it holds.
How the packs of a step are spread over forward passes is the memory plan's to decide and changes rounding only.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError


class TrainingConfigInvalid(LLMAssetsError):
    """A training setting contradicts another, or asks for something this machine or method cannot do."""


class TrainingConfig(Config):
    """Settings of one training run."""

    method: Literal["qlora", "lora", "full"] = Field(
        default="qlora",
        description="qlora: base weights in 4-bit NF4; lora: in compute_dtype; full: every weight is trained.",
    )
    rank: int = Field(default=16, ge=1, description="Rank of the adapter matrices.")
    alpha: int | None = Field(default=None, ge=1, description="Adapter scale; empty means twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapter, 0 to 1.")
    use_rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    use_dora: bool = Field(default=False, description="Train a magnitude per output row as well (DoRA); slower.")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description='"all-linear" (every linear layer but the output head) or module names.'
    )
    modules_to_save: tuple[Literal["embed_tokens", "lm_head"], ...] = Field(
        default=(), description="Vocabulary matrices trained and saved whole beside the adapter, in float32."
    )
    trainable_tokens: tuple[str, ...] = Field(
        default=(),
        description="Tokens whose embedding rows are trained beside the adapter, such as <|im_end|>; far smaller than "
        "modules_to_save. Rows of an untied output head are not among them.",
    )
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Peak learning rate.")
    warmup_share: float = Field(
        default=0.05, ge=0, lt=1, description="Share of the steps over which the rate rises from 0."
    )
    scheduler: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Shape after the warm-up.")
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field(
        default="adamw", description="paged_adamw_8bit saves optimiser memory on a GPU; needed only for method full."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are clipped to this norm.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the packs; give this or max_steps.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Optimiser steps; give this or epochs. Neither: 2 epochs."
    )
    batch_packs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="Packs per forward pass, laid end to end in one row. auto: as many as the memory plan allows, with "
        "accumulation_steps packs per optimiser step.",
    )
    accumulation_steps: int = Field(
        default=8,
        ge=1,
        description="Forward passes per optimiser step; with batch_packs auto, packs per optimiser step.",
    )
    evaluate_every_steps: int = Field(default=50, ge=1, description="Steps between evaluations on validation rows.")
    evaluation_rows: int = Field(
        default=200,
        ge=0,
        description="Validation rows per evaluation: the first ones, in order. 0 trains without evaluation.",
    )
    early_stopping_patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many evaluations without a better loss, and keep the best adapter.",
    )
    max_evaluation_loss: float | None = Field(
        default=None, gt=0, description="The final evaluation loss must be at most this, in nats per token."
    )
    save_every_steps: int = Field(
        default=100, ge=1, description="Steps between checkpoints; a crash costs at most this many."
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        default="auto",
        description="Recompute activations in the backward pass: about a third slower, far less memory. auto: where "
        "the memory plan does not fit without.",
    )
    skip_loss_spikes: float | None = Field(
        default=None,
        gt=1,
        description="Leave out the update of a step whose loss is more than this many times the median of the last 20.",
    )
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Type of the matrix products; adapters stay in float32. float16 needs a GPU."
    )
    attention: Literal["auto", "varlen", "block_mask", "flash_attention_2"] = Field(
        default="auto",
        description="How packed documents are kept apart. auto: flash_attention_2 on a GPU that has it installed, else "
        "varlen; block_mask for models with sliding windows, at tokens squared of memory.",
    )
    compile: bool = Field(default=False, description="Compile the model with torch.compile; needs a GPU.")
    liger: bool = Field(default=False, description="Use the fused kernels of the liger-kernel package; needs a GPU.")
    report_to: tuple[str, ...] = Field(
        default=("mlflow",),
        description="Where the run's curves go besides the asset page: mlflow, or any integration of transformers that "
        "is installed, such as tensorboard or wandb.",
    )
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=1,
        description="Processes that train together on a machine, each on a GPU of its own; auto: one per GPU. They "
        "share the packs of an optimiser step, so that the losses are those of one process.",
    )
    sharding: Literal["none", "full"] = Field(
        default="none",
        description="none: every process holds the whole model (DDP). full: each holds a slice of weights, gradients "
        "and optimizer (FSDP), for models that do not fit one GPU; methods lora and full, with processes over 1.",
    )
    seed: int = Field(
        default=0, ge=0, description="Seed of the adapter's initial values, dropout and the order of packs."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise TrainingConfigInvalid(
                f"training.epochs is {self.epochs} and training.max_steps is {self.max_steps}. Give one of them."
            )
        return self

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> Self:
        names = ("use_dora", "use_rslora", "modules_to_save", "trainable_tokens")
        if self.method == "full" and (given := [name for name in names if getattr(self, name)]):
            raise TrainingConfigInvalid(
                f"training.method full trains every weight and has no adapter: remove {', '.join(given)}."
            )
        return self

    @model_validator(mode="after")
    def _rows_once(self) -> Self:
        if self.modules_to_save and self.trainable_tokens:
            raise TrainingConfigInvalid(
                f"training.modules_to_save {list(self.modules_to_save)} already trains every row; remove "
                "training.trainable_tokens, or keep only that to train a few rows."
            )
        return self

    @model_validator(mode="after")
    def _evaluated_where_needed(self) -> Self:
        given = [n for n in ("early_stopping_patience", "max_evaluation_loss") if getattr(self, n) is not None]
        if self.evaluation_rows == 0 and given:
            raise TrainingConfigInvalid(
                f"training.evaluation_rows is 0, and {', '.join(given)} needs an evaluation. Set evaluation_rows."
            )
        return self

    @model_validator(mode="after")
    def _scaled_steps_have_gradients(self) -> Self:
        if self.compute_dtype == "float16" and self.skip_loss_spikes is not None:
            raise TrainingConfigInvalid(
                f"training.skip_loss_spikes {self.skip_loss_spikes} leaves steps without a gradient, and "
                "training.compute_dtype float16 scales the loss by that of every step. Use bfloat16, or remove "
                "skip_loss_spikes."
            )
        return self

    @model_validator(mode="after")
    def _shareable(self) -> Self:
        if self.sharding == "none":
            return self
        wrong = [
            ("method", "qlora", "Use method lora, or sharding none: 4-bit weights are a quarter as large"),
            ("optimizer", "paged_adamw_8bit", "Use optimizer adamw, whose moments are shared out"),
            ("compute_dtype", "float16", "Use bfloat16"),
            ("compile", True, "Set compile false"),
        ]
        for name, value, remedy in wrong:
            if getattr(self, name) == value:
                raise TrainingConfigInvalid(
                    f"training.sharding full does not work with training.{name} {str(value).lower()}. {remedy}."
                )
        if self.modules_to_save or self.trainable_tokens:
            raise TrainingConfigInvalid(
                "training.sharding full does not train modules_to_save or trainable_tokens. Use method full, which "
                "trains every row, or sharding none."
            )
        return self

    @property
    def lora_alpha(self) -> int:
        """The adapter scale in force."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def trains_row(self, token: str, matrix: Literal["input", "output"]) -> bool:
        """Whether training changes a token's row of the embedding (input) or of an untied output head (output)."""
        whole = {"input": "embed_tokens", "output": "lm_head"}[matrix]
        return self.method == "full" or token in self.trainable_tokens or whole in self.modules_to_save

    @property
    def packs_per_step(self) -> int:
        """Packs one optimiser step sees."""
        return self.accumulation_steps * (1 if self.batch_packs == "auto" else self.batch_packs)

    def steps(self, packs: int) -> int:
        """Optimiser steps of the whole run over a dataset of `packs` packs."""
        epochs = 2.0 if self.epochs is None else self.epochs
        return self.max_steps or max(1, math.ceil(epochs * packs / self.packs_per_step))

    def warmup_steps(self, steps: int) -> int:
        """Steps over which the learning rate rises."""
        return round(self.warmup_share * steps)

    def with_parameters(self, parameters: Mapping[str, Any]) -> "TrainingConfig":
        """This config with some fields replaced, checked again."""
        return TrainingConfig.model_validate({**self.model_dump(), **parameters})
