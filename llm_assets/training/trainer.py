"""Train one adapter on packed rows with `transformers.Trainer`, so that a killed run continues to the same bytes.

Everything that can refuse does so first: settings against the device, rows against the base, memory against a plan,
isolation against the loaded model. Only then does the first step run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_assets.training import adapted_model, checkpoints, isolation, packs, ranks, sharding, trained_weights
from llm_assets.training.attention import choose_attention, packed_attention
from llm_assets.training.device import TrainingDevice, refuse_unsupported, this_device
from llm_assets.training.loss import evaluate, label_losses
from llm_assets.training.memory_plan import MemoryPlan
from llm_assets.training.optimizer_step import StepRunner
from llm_assets.training.pack_trainer import trainer_class, training_arguments
from llm_assets.training.run_inputs import PLAN, RunInputs, plans_for, read_inputs
from llm_assets.training.throughput import Throughput, peak_memory_bytes
from llm_assets.training.training_config import TrainingConfig
from llm_assets.training.training_report import (
    Provenance,
    TrainingReport,
    copy_tokenizer,
    first_and_final_loss,
    step_rows,
    write_records,
)
from llm_assets.training.watch import Judge, best_path, best_step, evaluations, half_widths, watch_class


def train_adapter(
    base: Path,
    dataset: Path,
    out: Path,
    work: Path,
    config: TrainingConfig,
    *,
    log: Callable[[str], None],
    on_evaluation: Callable[[int, float], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
) -> TrainingReport:
    """Train and write an adapter (for method full: a model), its tokenizer, `loss.parquet` and `training.json`.

    Args:
        base: Hugging Face directory of the base model.
        dataset: A tokenized dataset directory.
        out: An existing directory; the result is written there.
        work: Checkpoints; give the same directory again to continue a killed run.
        config: The settings.
        log: Receives the memory plan and at most about 60 progress lines.
        on_evaluation: Called with step and evaluation loss; raising ends the run.
        report: Called with step and the run's curves by name: loss, learning rate, gradient norm, speed, memory.

    Raises:
        TrainingConfigInvalid: the device, the base or an uninstalled package rules a setting out.
        CheckpointMismatch: `work` holds checkpoints of another dataset, base or config.
        CheckpointNotWritten: the disk is full; the checkpoints before are whole.
        DatasetUnusable: a split is missing or supervises nothing, or the rows are for another base.
        MemoryTooSmall: not even one pack at a time fits.
        PackIsolationBroken: packed documents influence each other on this model.
        TrainingDiverged: a loss or gradient is not finite, or the loss rose; names the step and rows.
        TrainingOutOfMemory: a step did not fit, however it is cut.
        PlanTooLarge: the same in one of several processes, and a smaller plan is left: call again, in all of them.
    """
    from transformers import set_seed

    device = this_device()
    refuse_unsupported(config, device)
    token_ids = adapted_model.token_ids_of(dataset / "tokenizer", config.trainable_tokens)
    inputs = read_inputs(base, dataset, config)
    ranks.from_first(lambda: checkpoints.claim(work, inputs.origin))
    plans = ranks.from_first(lambda: plans_for(work, inputs, config, device))  # devices of two kinds plan differently
    log(f"memory plan\n{plans[0].table()}")

    set_seed(config.seed)
    before = _start_measuring_memory(device)
    shared_out = sharding.is_shared_out(config)
    model = adapted_model.load_base(base, config.method, config.compute_dtype, "cpu" if shared_out else None)
    provenance = Provenance(
        inputs.origin["dataset"], inputs.origin["base"], adapted_model.quantized_modules(model), inputs.sequence.rows
    )
    model = adapted_model.add_adapter(model, config, token_ids)
    if shared_out:
        sharding.share_out(model, adapted_model.unwrapped(model), config, adapted_model.training_device())
    attention = choose_attention(config.attention, adapted_model.unwrapped(model))
    runner = StepRunner(config, plans, adopt=_adopter(adapted_model.unwrapped(model), work), log=log)
    probed = inputs.held_out or inputs.sequence.rows
    measured = isolation.measure_isolation(
        model.train(), attention, probed, model.config.vocab_size, config.compute_dtype
    )
    isolation.require_isolation(measured, attention)

    throughput = Throughput(inputs.shape, config.method == "full", device, ranks.world())
    judge = Judge(
        config=config,
        runner=runner,
        throughput=throughput,
        origin=inputs.origin,
        evaluate=_evaluation(model, inputs.held_out),
        save_best=lambda path: trained_weights.save(model, path),
        log=log,
        on_evaluation=on_evaluation,
        report=report or (lambda step, curves: None),
    )
    trainer = _trainer(model, inputs, config, work, judge)
    _run(trainer, attention, ranks.from_first(lambda: checkpoints.latest_complete(work, inputs.origin, log)), log)
    if config.early_stopping_patience:
        _load_best(model, work, trainer.state.log_history)
    weights = trained_weights.gathered(model) if shared_out else None
    finished = _report(trainer, config, measured, throughput, peak_memory_bytes(device.kind) - before)
    if ranks.is_first():
        adapted_model.save_adapter(model, out, weights)
        copy_tokenizer(dataset, out)
        write_records(out, finished, config, provenance)
    return finished


def _adopter(inner: Any, work: Path) -> Callable[[MemoryPlan], None]:
    def adopt(plan: MemoryPlan) -> None:
        if plan.gradient_checkpointing:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            inner.gradient_checkpointing_disable()
        layout = {n: getattr(plan, n) for n in ("micro_batch_packs", "gradient_checkpointing")}
        checkpoints.write_whole(work / PLAN, layout)  # in each process: any may be the one it fails

    return adopt


def _evaluation(model: Any, held_out: Sequence[packs.Row]) -> Callable[[], Any] | None:
    """Loss on the held-out rows with the model's own attention; None without rows."""
    if not held_out:
        return None
    inner = adapted_model.unwrapped(model)
    own_attention = str(inner.config._attn_implementation)

    def run() -> Any:
        with packed_attention(inner, own_attention):
            found = evaluate(model, held_out)
        return ranks.from_first(lambda: found)  # all decide from the same number

    return run


def _trainer(model: Any, inputs: RunInputs, config: TrainingConfig, work: Path, judge: Judge) -> Any:
    from transformers import PrinterCallback

    trainer = trainer_class()(
        judge.runner,
        inputs.sequence,
        model=model,
        args=training_arguments(config, inputs.steps, work),
        callbacks=[watch_class()(judge)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _run(trainer: Any, attention: str, checkpoint: Path | None, log: Callable[[str], None]) -> None:
    values = trained_weights.count(trainer.model)
    log(f"training {values:,} values for {trainer.args.max_steps} steps on {trainer.args.device.type}, {attention}")
    inner = adapted_model.unwrapped(trainer.model)
    with packed_attention(inner, attention), label_losses(inner):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _load_best(model: Any, work: Path, log_history: list[dict[str, Any]]) -> None:
    """Put the weights of the best evaluation back."""
    ranks.wait_for_all()
    trained_weights.load(model, best_path(work, best_step(log_history)))


def _start_measuring_memory(device: TrainingDevice) -> int:
    """Forget earlier peaks where that is possible; the bytes to take off the next one."""
    if device.kind == "cpu":
        return peak_memory_bytes("cpu")
    import torch

    torch.cuda.reset_peak_memory_stats()
    return 0


def _report(
    trainer: Any, config: TrainingConfig, measured: isolation.Isolation, throughput: Throughput, peak_bytes: int
) -> TrainingReport:
    steps, log_history = trainer.state.global_step, trainer.state.log_history
    evaluated = evaluations(log_history)
    published = best_step(log_history) if config.early_stopping_patience else steps
    history = step_rows(log_history, evaluated)
    tokens, supervised = trainer.sequence.tokens(steps * (config.packs_per_step // ranks.world()))
    first, final = first_and_final_loss(history)
    return TrainingReport(
        steps=steps,
        tokens=tokens,
        supervised_tokens=supervised,
        first_loss=first,
        final_loss=final,
        base_evaluation_loss=evaluated.get(0),
        evaluation_loss=evaluated.get(published),
        evaluation_half_width=half_widths(log_history).get(published),
        trainable_parameters=trained_weights.count(trainer.model),
        skipped_steps=sum("skipped_loss" in entry for entry in log_history),
        tokens_per_second=throughput.tokens_per_second,
        model_flops_share=throughput.model_flops_share,
        plan=trainer.runner.plan,
        measured_memory_bytes=peak_bytes,
        isolation=measured,
        history=history,
    )
