"""LoRA training of the demo's model on the demo's rows: packed documents, against padded batches of the stock Trainer.

Both sides train the same adapter in bfloat16 on the same rows, with about the same tokens per optimiser step. Only
tokens that belong to a row count: padding is work without a result. The clock runs from the first step to the last,
so loading, checkpoints and the first evaluation are left out on both sides.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._demo import write_chat_dataset, write_random_base
from benchmarks._harness import Row, interleaved, main
from llm_assets.data import TokenizationConfig
from llm_assets.data.tokenization import tokenize_dataset
from llm_assets.training import TrainingConfig
from llm_assets.training.packs import read_packs, read_rows
from llm_assets.training.trainer import train_adapter

PADDED = "`transformers.Trainer`, batches padded to their longest row"
GROUPED = "`transformers.Trainer`, the same with `group_by_length`"
MAX_LENGTH_TOKENS, BATCH_PACKS, RANK = 256, 8, 16


def measure(quick: bool, scratch: Path) -> list[Row]:
    """Real tokens per CPU second of the three trainings."""
    chat, base, dataset = write_chat_dataset(scratch, 6_000), write_random_base(scratch), scratch / "tokenized_dataset"
    dataset.mkdir()
    tokenize_dataset(chat, base, dataset, TokenizationConfig(max_length_tokens=MAX_LENGTH_TOKENS), lambda _: None)
    steps = 5 if quick else 30
    sides = {
        "ours": lambda: with_ours(base, dataset, scratch, steps),
        PADDED: lambda: with_trainer(base, dataset, scratch, steps, "random"),
        GROUPED: lambda: with_trainer(base, dataset, scratch, steps, "group_by_length"),
    }
    found = interleaved(sides, rounds=1 if quick else 3)
    speed = {name: metrics["tokens_per_cpu_second"] for name, metrics in found.items()}
    return [
        Row("LoRA training: tokens without padding", speed["ours"], speed[name], name, "tokens/CPU s", "higher", goal)
        for name, goal in ((PADDED, 1.2), (GROUPED, 1.0))
    ]


def with_ours(base: Path, dataset: Path, scratch: Path, steps: int) -> dict[str, float]:
    """Packs laid end to end, attention per document, logits where there is a label."""
    config = TrainingConfig(
        method="lora", rank=RANK, max_steps=steps, batch_packs=BATCH_PACKS, accumulation_steps=1,
        evaluation_rows=1, evaluate_every_steps=steps + 1, save_every_steps=steps + 1,
    )  # fmt: skip
    stamps: list[float] = []

    def stamp(line: str) -> None:
        if line.startswith(("base model:", f"step {steps}/{steps}:")):
            stamps.append(time.process_time())

    number = len(list(scratch.glob("ours_*")))
    out, work = scratch / f"ours_{number}", scratch / f"work_{number}"
    out.mkdir()
    report = train_adapter(base, dataset, out, work, config, log=stamp)
    began, ended = stamps
    return {"tokens_per_cpu_second": report.tokens / (ended - began)}


def with_trainer(base: Path, dataset: Path, scratch: Path, steps: int, sampling: str) -> dict[str, float]:
    """The stock trainer, collator, attention and loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, PrinterCallback, Trainer

    rows, collated = read_rows(dataset, "train"), []
    pad = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base))

    def collate(features: list[dict[str, Any]]) -> Any:
        collated.append(sum(len(feature["input_ids"]) for feature in features))
        return pad(features)

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.config.use_cache = False
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=_arguments(scratch, steps, rows_per_step(dataset), sampling),
        train_dataset=[{"input_ids": row.input_ids.tolist(), "labels": row.labels.tolist()} for row in rows],  # type: ignore[arg-type]
        data_collator=collate,
    )
    trainer.remove_callback(PrinterCallback)
    watch = _stopwatch()
    trainer.add_callback(watch)
    trainer.train()
    return {"tokens_per_cpu_second": sum(collated[:steps]) / (watch.ended - watch.began)}


def rows_per_step(dataset: Path) -> int:
    """Rows that hold as many tokens as the packs of one of our steps, on average."""
    return round(BATCH_PACKS * np.mean([len(pack) for pack in read_packs(dataset)]))


def _arguments(scratch: Path, steps: int, batch_rows: int, sampling: str) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(scratch / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch_rows,
        train_sampling_strategy=sampling,
        bf16=True,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
    )


def _stopwatch() -> Any:
    from transformers import TrainerCallback

    class Stopwatch(TrainerCallback):
        """CPU seconds at the start and after the latest step."""

        began = ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.process_time()

    return Stopwatch()


if __name__ == "__main__":
    main("training", measure)
