"""`transformers.Trainer` on packs: its schedule, optimiser and checkpoints; the step and the order of data are ours.

One batch of the trainer is one whole optimiser step, as a list of packs. Each process reads its own sequence, so the
loader is not sharded again.
"""

from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from llm_assets.training import adapted_model, checkpoints, ranks, sharding, trained_weights
from llm_assets.training.optimizer_step import StepRunner
from llm_assets.training.packs import PackSequence
from llm_assets.training.training_config import TrainingConfig

TRAINED = "trained.safetensors"  # in checkpoints of weights that are shared out
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


@cache
def trainer_class() -> type:
    """The trainer; built on first use because its base class lives in transformers."""
    import torch
    from transformers import Trainer, TrainerCallback

    class Rehearsal(TrainerCallback):
        """Runs the heaviest packs once, when the model is prepared and nothing is measured yet."""

        def __init__(self, trainer: "PackTrainer") -> None:
            self.trainer = trainer

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer: Any = self.trainer
            model = trainer.model_wrapped.train()
            packs = trainer.sequence.heaviest(trainer.runner.plan.micro_batch_packs)
            trainer.runner.probe(trainer, model, packs)

    class PackTrainer(Trainer):
        """A trainer whose steps a `StepRunner` takes."""

        def __init__(self, runner: StepRunner, sequence: PackSequence, callbacks: list[Any], **options: Any) -> None:
            self.runner, self.sequence = runner, sequence
            options.update(train_dataset=sequence, data_collator=_as_it_is, callbacks=[Rehearsal(self), *callbacks])
            super().__init__(**options)
            self.trained = [value for value in options["model"].parameters() if value.requires_grad]
            data_parallel: Any = self.accelerator.ddp_handler
            data_parallel.gradient_as_bucket_view = True  # else every gradient is held twice
            self.is_shared_out = sharding.is_shared_out(runner.config)
            if self.is_shared_out:  # exchanges its gradients by itself: not for DDP, which the other mode wraps it in
                self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)

        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.sequence,  # type: ignore[arg-type] - any sequence will do
                batch_size=self.args.train_batch_size,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # its own: the loader draws a number, which no resumed run would repeat
            )

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            return self.runner.step(self, model if model.training else model.train(), inputs["packs"])

        def _clip_grad_norm(self, model: Any) -> Any:
            self.accelerator.unscale_gradients()
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm)  # others have no gradient
            return sharding.whole(norm)

        def create_optimizer(self, model: Any = None) -> Any:
            optimizer = super().create_optimizer(model)
            if self.is_shared_out:
                sharding.take_whole_states(optimizer)
            return optimizer

        def save_model(self, output_dir: Any = None, _internal_call: bool = False) -> None:
            if not self.is_shared_out:
                return super().save_model(output_dir, _internal_call)
            return trained_weights.save(self.model, Path(output_dir) / TRAINED)

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if not self.is_shared_out:
                return super()._save_optimizer_and_scheduler(output_dir)
            state = sharding.whole_state(self.optimizer)
            if self.args.should_save:
                torch.save(state, Path(output_dir) / OPTIMIZER)
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)  # type: ignore[union-attr]
            return None

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None or not self.is_shared_out:
                return super()._load_optimizer_and_scheduler(checkpoint)
            place = Path(checkpoint)  # read from disk as it is cut: the original puts it whole on every device
            state = torch.load(place / OPTIMIZER, map_location="cpu", mmap=True, weights_only=True)
            optimizer, scheduler = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
            optimizer.load_state_dict(state)
            scheduler.load_state_dict(torch.load(place / SCHEDULER, weights_only=True))
            return None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not self.is_shared_out:
                return super()._load_from_checkpoint(resume_from_checkpoint, model)
            return trained_weights.load(self.model, Path(resume_from_checkpoint) / TRAINED)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            with checkpoints.explained(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
                super()._save_checkpoint(model, trial)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # the original walks every parameter at every step, for a number nobody reads

    return PackTrainer


def training_arguments(config: TrainingConfig, steps: int, work: Path) -> Any:
    """The settings in the trainer's own words; a batch of it is a whole optimiser step of this process."""
    from transformers import TrainingArguments

    arguments: Any = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        per_device_train_batch_size=config.packs_per_step // ranks.world(),
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if ranks.world() > 1 and adapted_model.training_device() == "cpu" else None,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.scheduler == "constant" else config.scheduler,
        warmup_steps=config.warmup_steps(steps),
        optim="adamw_torch_fused" if config.optimizer == "adamw" else config.optimizer,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.compute_dtype == "bfloat16",
        fp16=config.compute_dtype == "float16",
        torch_compile=config.compile,
        use_liger_kernel=config.liger,
        liger_kernel_config={"cross_entropy": False, "fused_linear_cross_entropy": False},  # the loss is ours
        save_steps=config.save_every_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[name for name in config.report_to if name != "mlflow"],
        seed=config.seed,
        use_cpu=adapted_model.training_device() == "cpu",
    )
    if ranks.world() > 1 and arguments.device.type == "cpu":
        on_cpu = type(arguments.device)("cpu")  # torch.load knows no "cpu:0", which a checkpoint would be mapped to
        arguments.distributed_state.device = arguments.__dict__["_setup_devices"] = on_cpu
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # data parallelism by threads would split a packed row
    return arguments


def _as_it_is(packs: list[Any]) -> dict[str, list[Any]]:
    return {"packs": packs}
