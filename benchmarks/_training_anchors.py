"""What a user would train with instead: a tutorial's loop, the stock trainer, TRL, and a loop written by hand.

Each side is given the same rows and the same model, and says what it saw: tokens and supervised tokens of every step,
its losses, and the CPU seconds at the end of every step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.training.packs import NO_LOSS, Row, lay_end_to_end

LEARNING_RATE = 1e-12
RANK = 16
MAX_LENGTH_TOKENS = 1024  # TRL's default, and where the model's positions end
PACKS_PER_STEP, ROWS_PER_STEP = 2, 8


@dataclass
class Seen:
    """What one side did, step by step."""

    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Count the rows of a step."""
        self.tokens.append(sum(len(row.input_ids) for row in rows))
        self.supervised.append(sum(int((row.labels[1:] != NO_LOSS).sum()) for row in rows))

    def stamp(self) -> None:
        """Note the time at the end of a step."""
        self.cpu_seconds.append(time.process_time())

    @property
    def mean_loss(self) -> float:
        """Nats per supervised token over all steps."""
        return float(np.dot(self.losses, self.supervised) / sum(self.supervised))

    @property
    def tokens_per_cpu_second(self) -> float:
        """Of all steps but the first."""
        return sum(self.tokens[1:]) / (self.cpu_seconds[-1] - self.cpu_seconds[0])


def adapted(base: Path, attention: str = "sdpa") -> Any:
    """The base in bfloat16 with a fresh float32 adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation=attention)
    model.config.use_cache = False
    return get_peft_model(model, LoraConfig(**lora())).train()


def lora() -> dict[str, Any]:
    """The adapter's settings."""
    return {"task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"}


def padded_to_max(base: Path, rows: Sequence[Row]) -> Seen:
    """The loop of most tutorials: `padding="max_length"`, the model's own loss, AdamW."""
    import torch

    model, seen = adapted(base), Seen()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), LEARNING_RATE)
    for batch in _batches(rows, ROWS_PER_STEP):
        ids = torch.zeros(len(batch), MAX_LENGTH_TOKENS, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, NO_LOSS)
        for line, row in enumerate(batch):
            length = len(row.input_ids)
            ids[line, :length] = torch.from_numpy(row.input_ids.astype(np.int64))
            labels[line, :length] = torch.from_numpy(row.labels.astype(np.int64))
            mask[line, :length] = 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        _update(loss, model, optimizer, seen, batch)
    return seen


def by_hand(base: Path, packs: Sequence[Sequence[Row]]) -> Seen:
    """A loop written for these packs, with the same attention and with logits only where there is a label."""
    import torch

    from llm_assets.training.attention import VARLEN, register_varlen

    register_varlen()
    model, seen = adapted(base, VARLEN), Seen()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), LEARNING_RATE, fused=True)
    for some in _batches(packs, PACKS_PER_STEP):
        batch = lay_end_to_end(some)
        predicting, targets = batch.pop("predicting"), batch.pop("targets")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch, logits_to_keep=predicting).logits[0]
            loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        _update(loss, model, optimizer, seen, [row for pack in some for row in pack])
    return seen


def with_trainer(base: Path, rows: Sequence[Row], scratch: Path, sampling: str) -> Seen:
    """The stock trainer, its collator, attention and loss; batches padded to their longest row."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    pad, seen = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base)), Seen()
    settings = {**_settings(scratch), "per_device_train_batch_size": ROWS_PER_STEP, "train_sampling_strategy": sampling}
    trainer = Trainer(
        model=adapted(base),
        args=TrainingArguments(**settings),
        train_dataset=[{"input_ids": r.input_ids.tolist(), "labels": r.labels.tolist()} for r in rows],  # type: ignore[arg-type]
        data_collator=_counting(pad, seen),
    )
    return _watched(trainer, seen)


def with_trl(base: Path, rows: Sequence[Row], scratch: Path) -> Seen:
    """SFTTrainer with its best-fit packing and completion-only loss, on rows that are tokenized already."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    seen = Seen()
    settings = {
        **_settings(scratch),
        "per_device_train_batch_size": PACKS_PER_STEP,
        "packing": True,
        "max_length": MAX_LENGTH_TOKENS,
        "completion_only_loss": True,
        "gradient_checkpointing": False,  # on by default, and slower
    }
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16),
        args=SFTConfig(**settings),
        train_dataset=Dataset.from_list(
            [
                {"input_ids": r.input_ids.tolist(), "completion_mask": (r.labels != NO_LOSS).astype(int).tolist()}
                for r in rows
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(**lora()),
    )
    trainer.data_collator = _counting(trainer.data_collator, seen)
    return _watched(trainer, seen)


def _update(loss: Any, model: Any, optimizer: Any, seen: Seen, rows: Sequence[Row]) -> None:
    import torch

    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    seen.add_rows(rows)
    seen.losses.append(float(loss.detach()))
    seen.stamp()


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _settings(scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch / "anchor"),
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": True,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _counting(collate: Callable[..., Any], seen: Seen) -> Callable[..., Any]:
    """A collator that also counts what is real and what is learned in the batch it made."""

    def counted(features: list[dict[str, Any]]) -> Any:
        batch = collate(features)
        seen.tokens.append(sum(len(feature["input_ids"]) for feature in features))
        seen.supervised.append(int((batch["labels"][:, 1:] != NO_LOSS).sum()))
        return batch

    return counted


def _watched(trainer: Any, seen: Seen) -> Seen:
    from transformers import PrinterCallback, TrainerCallback

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.stamp()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Stopwatch())
    trainer.train()
    seen.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return seen
