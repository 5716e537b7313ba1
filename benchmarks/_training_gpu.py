"""QLoRA of a model of Llama 3.1 8B's shape on one GPU, packed, against the stock trainer with peft.

Weights are random: speed does not depend on them. Rows are as long as those of chat data sets, about 500 tokens. Both
sides train the same rows in 4 bit with bfloat16 products and recompute activations where they must; tokens count when
they belong to a row.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks._demo import write_random_base
from benchmarks._harness import Row as Comparison
from llm_assets.data.packing import pack_best_fit
from llm_assets.data.token_files import write_rows as write_token_rows
from llm_assets.training import TrainingConfig
from llm_assets.training.packs import NO_LOSS, read_rows
from llm_assets.training.trainer import train_adapter

LLAMA_3_1_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
RANK, ROWS_PER_STEP, STATED_ROWS = 16, 32, 100_000
PLAIN = "`transformers.Trainer` with peft and bitsandbytes, batches padded to their longest row"


@dataclass(frozen=True)
class Speed:
    """Tokens without padding per second, and their share of the device's peak operations where that is known."""

    tokens_per_second: float
    model_flops_share: float | None


def measure_gpu(scratch: Path, shape: Mapping[str, Any] = LLAMA_3_1_8B, steps: int = 12) -> list[Comparison]:
    """Packs of 2,048 and of 1,024 tokens against padded batches of the same rows."""
    base, found = write_base(scratch, shape), []
    for pack_length_tokens in (2048, 1024):
        dataset = write_rows(base, scratch / f"rows_{pack_length_tokens}", pack_length_tokens, steps, shape)
        ours = packed(base, dataset, scratch / f"packed_{pack_length_tokens}", steps)
        anchor = plain(base, dataset, scratch / f"plain_{pack_length_tokens}", steps)
        mean_tokens = float(np.mean([len(row.input_ids) for row in read_rows(dataset, "train")]))
        hours = STATED_ROWS * mean_tokens / ours.tokens_per_second / 3600
        share = f", {ours.model_flops_share:.0%} of peak" if ours.model_flops_share else ""
        work = (
            f"QLoRA, 8B shape, packs of {pack_length_tokens}{share}; {hours:.1f} h per pass over {STATED_ROWS:,} rows"
        )
        found.append(
            Comparison(work, ours.tokens_per_second, anchor.tokens_per_second, PLAIN, "tokens/s", "higher", 1.0)
        )
    return found


def packed(base: Path, dataset: Path, scratch: Path, steps: int) -> Speed:
    """Ours, with the batch the memory plan finds; the first step is left out."""
    config = TrainingConfig(
        method="qlora", rank=RANK, max_steps=steps, accumulation_steps=8, evaluation_rows=0, save_every_steps=10_000,
        report_to=(),
    )  # fmt: skip
    curves: list[Mapping[str, float]] = []
    (scratch / "out").mkdir(parents=True)
    train_adapter(
        base, dataset, scratch / "out", scratch / "work", config,
        log=lambda line: print(line, flush=True), report=lambda step, found: curves.append(found),
    )  # fmt: skip
    later = [found for found in curves if "tokens_per_second" in found][1:]
    shares = [found["model_flops_share"] for found in later if "model_flops_share" in found]
    speed = float(np.median([found["tokens_per_second"] for found in later]))
    return Speed(speed, float(np.median(shares)) if shares else None)


def plain(base: Path, dataset: Path, scratch: Path, steps: int) -> Speed:
    """The stock trainer as its documentation sets QLoRA up; the first step is left out."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, quantization_config=nf4, device_map={"": device}
    )
    model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    pad, counted, stamps = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(base)), [], []

    def collate(features: list[dict[str, Any]]) -> Any:
        counted.append(sum(len(feature["input_ids"]) for feature in features))
        return pad(features)

    class Stopwatch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            stamps.append(time.monotonic())

    rows, batch_rows = read_rows(dataset, "train"), 4
    trainer = Trainer(
        model=get_peft_model(model, lora),
        args=TrainingArguments(
            output_dir=str(scratch),
            max_steps=steps,
            per_device_train_batch_size=batch_rows,
            gradient_accumulation_steps=ROWS_PER_STEP // batch_rows,
            bf16=True,
            use_cpu=device == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=[{"input_ids": r.input_ids.tolist(), "labels": r.labels.tolist()} for r in rows],  # type: ignore[arg-type]
        data_collator=collate,
        callbacks=[Stopwatch()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    passes = ROWS_PER_STEP // batch_rows
    return Speed(sum(counted[passes : steps * passes]) / (stamps[-1] - stamps[0]), None)


def write_base(scratch: Path, shape: Mapping[str, Any]) -> Path:
    """A model directory of that shape with weights as they were drawn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = write_random_base(scratch)
    (base / "model.safetensors").unlink()
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).to(torch.bfloat16).save_pretrained(base)
    return base


def write_rows(base: Path, dataset: Path, pack_length_tokens: int, steps: int, shape: Mapping[str, Any]) -> Path:
    """A tokenized dataset of random tokens in chat-like lengths, enough for every step of either side."""
    draw = np.random.default_rng(0)
    count = ROWS_PER_STEP * (steps + 1)
    lengths = np.clip(draw.lognormal(5.9, 0.8, count).astype(int), 16, pack_length_tokens)
    rows = [draw.integers(0, shape["vocab_size"], n).astype(np.int32) for n in lengths]
    dataset.mkdir()
    stored = [
        {"row_id": str(place), "input_ids": row, "labels": _answered(row), "prompt_tokens": len(row) // 2}
        for place, row in enumerate(rows)
    ]
    for split in ("train", "validation"):
        write_token_rows(dataset, split, stored)
    packs: Sequence[Any] = pack_best_fit(lengths, pack_length_tokens)
    pq.write_table(
        pa.table({"rows": pa.array([list(map(int, pack)) for pack in packs], pa.list_(pa.int32()))}),
        dataset / "packs.parquet",
    )
    (dataset / "tokenizer").mkdir()
    for path in base.glob("*token*"):
        (dataset / "tokenizer" / path.name).write_bytes(path.read_bytes())
    return dataset


def _answered(row: np.ndarray) -> np.ndarray:
    """Labels on the second half: the answer."""
    labels = np.full(len(row), NO_LOSS, dtype=np.int32)
    labels[len(row) // 2 :] = row[len(row) // 2 :]
    return labels
