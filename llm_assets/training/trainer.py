"""Train one adapter on packed rows with `transformers.Trainer`, so that a killed run continues to the same bytes.

The trainer sees one long epoch of packs in a fixed order; loss, evaluation and stopping are ours, checkpoints and the
optimiser are its own.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training import adapted_model, checkpoints, identity, isolation, packs
from llm_assets.training.attention import choose_attention, packed_attention
from llm_assets.training.loss import evaluation_loss, normalized_loss
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import (
    Provenance,
    TrainingReport,
    copy_tokenizer,
    first_and_final_loss,
    step_rows,
    write_records,
)
from llm_assets.training.watch import Judge, best_path, best_step, evaluations, watch_class


class TrainingOutOfMemory(LLMAssetsError):
    """A step did not fit into memory."""


def train_adapter(
    base: Path,
    dataset: Path,
    out: Path,
    work: Path,
    config: TrainingConfig,
    *,
    log: Callable[[str], None],
    on_evaluation: Callable[[int, float], None] | None = None,
) -> TrainingReport:
    """Train and write an adapter (for method full: a model), its tokenizer, `loss.parquet` and `training.json`.

    Args:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        out: An existing directory; the result is written there.
        work: Checkpoints; give the same directory again to continue a killed run.
        config: The settings.
        log: Receives a line about every 10 seconds.
        on_evaluation: Called with step and evaluation loss; raising ends the run.

    Raises:
        CheckpointMismatch: `work` holds checkpoints of another dataset, base or config.
        PackIsolationBroken: packed documents influence each other on this model.
        TrainingDiverged: a loss or gradient is not finite, or the loss rose; names the step.
        TrainingOutOfMemory: a step did not fit.
        DatasetUnusable: a split is missing or supervises nothing.
    """
    from transformers import set_seed

    origin = {
        "dataset": identity.directory_fingerprint(dataset),
        "base": identity.directory_fingerprint(base),
        "config": identity.settings_digest(config.model_dump(mode="json")),
    }
    checkpoints.claim(work, origin)
    row_lists = packs.read_packs(dataset)
    steps = config.steps(len(row_lists))
    rows = packs.read_rows(dataset, "train")
    sequence = packs.PackSequence(rows, row_lists, steps * config.packs_per_step, config.seed)
    held_out = packs.read_rows(dataset, "validation", config.evaluation_rows)

    set_seed(config.seed)
    model = adapted_model.load_base(base, config.method, config.compute_dtype)
    attention = choose_attention(config.attention, model)
    provenance = Provenance(origin["dataset"], origin["base"], adapted_model.quantized_modules(model))
    model = adapted_model.add_adapter(model, config)
    measured = isolation.measure_isolation(model, attention, held_out, model.config.vocab_size)
    isolation.require_isolation(measured, attention)

    judge = _judge(model, held_out, config, log, on_evaluation)
    trainer = _trainer(model, sequence, _arguments(config, steps, work), judge)
    ran = _run(trainer, attention, checkpoints.latest_complete(work), log)
    if config.early_stopping_patience:
        _load_best(model, work, trainer.state.log_history)
    adapted_model.save_adapter(model, out)
    copy_tokenizer(dataset, out)
    report = _report(trainer, sequence, config, measured, ran)
    write_records(out, report, config, provenance, held_out)
    return report


def _judge(
    model: Any,
    held_out: list[packs.Row],
    config: TrainingConfig,
    log: Callable[[str], None],
    on_evaluation: Callable[[int, float], None] | None,
) -> Judge:
    inner = adapted_model.unwrapped(model)
    own_attention = str(inner.config._attn_implementation)

    def evaluate() -> float:
        with packed_attention(inner, own_attention):
            return evaluation_loss(model, held_out)

    return Judge(config, evaluate, lambda path: adapted_model.save_trained(model, path), log, on_evaluation)


def _trainer(model: Any, sequence: packs.PackSequence, arguments: Any, judge: Judge) -> Any:
    from transformers import PrinterCallback, Trainer

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sequence,  # type: ignore[arg-type] - any sequence will do
        data_collator=packs.lay_end_to_end,
        compute_loss_func=normalized_loss,
        callbacks=[watch_class()(judge)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.floating_point_ops = lambda inputs: 0  # it walks every parameter at every step, for a number nobody reads
    return trainer


def _arguments(config: TrainingConfig, steps: int, work: Path) -> Any:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=config.batch_packs,
        gradient_accumulation_steps=config.accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        warmup_steps=config.warmup_steps(steps),
        optim="adamw_torch_fused" if config.optimizer == "adamw" else config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.compute_dtype == "bfloat16",
        fp16=config.compute_dtype == "float16",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_steps=config.save_every_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        seed=config.seed,
        use_cpu=adapted_model.training_device() == "cpu",
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # data parallelism by threads would split a packed row
    return arguments


def _run(trainer: Any, attention: str, checkpoint: Path | None, log: Callable[[str], None]) -> tuple[int, float]:
    """Train to the end; return the step the run began at and the seconds it took."""
    import torch

    values = adapted_model.trained_values(trainer.model)
    log(f"training {values:,} values for {trainer.args.max_steps} steps on {trainer.args.device.type}, {attention}")
    began = time.monotonic()
    try:
        with packed_attention(adapted_model.unwrapped(trainer.model), attention):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingOutOfMemory(
            f"Step {trainer.state.global_step + 1} did not fit into memory: {str(error).splitlines()[:1]} Lower "
            "training.batch_packs and raise accumulation_steps by the same factor, or set gradient_checkpointing."
        ) from error
    return checkpoints.step_of(checkpoint) if checkpoint else 0, time.monotonic() - began


def _load_best(model: Any, work: Path, log_history: list[dict[str, Any]]) -> None:
    """Put the weights of the best evaluation back."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(best_path(work, best_step(log_history))), strict=False)


def _report(
    trainer: Any,
    sequence: packs.PackSequence,
    config: TrainingConfig,
    measured: isolation.Isolation,
    ran: tuple[int, float],
) -> TrainingReport:
    steps, evaluated = trainer.state.global_step, evaluations(trainer.state.log_history)
    history = step_rows(trainer.state.log_history, evaluated)
    tokens, supervised = sequence.tokens(steps * config.packs_per_step)
    first, final = first_and_final_loss(history)
    began_step, seconds = ran
    tokens_here = tokens - sequence.tokens(began_step * config.packs_per_step)[0]
    return TrainingReport(
        steps=steps,
        tokens=tokens,
        supervised_tokens=supervised,
        first_loss=first,
        final_loss=final,
        base_evaluation_loss=evaluated[0],
        evaluation_loss=evaluated[best_step(trainer.state.log_history) if config.early_stopping_patience else steps],
        trainable_parameters=adapted_model.trained_values(trainer.model),
        tokens_per_second=tokens_here / seconds,
        isolation=measured,
        history=history,
    )
