"""One optimiser step over packs: forward passes under a memory plan, begun again under a smaller one if need be.

The trainer sees a whole step as one batch, so that how it is cut into forward passes can change in the middle of a run
without touching the data order, the schedule or the loss. A step begun again starts from zeroed gradients and the
random state it began with; the cost is the work of the failed attempt. Of several processes, one that fails leaves the
others inside an exchange: there the whole run starts again from its last checkpoint, under the smaller plan.
"""

import gc
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training import ranks, sharding
from llm_assets.training.memory_plan import MemoryPlan
from llm_assets.training.packs import Row, lay_end_to_end, supervised_tokens
from llm_assets.training.training_config import TrainingConfig

if TYPE_CHECKING:
    import torch

NAMED_ROWS = 20
SPIKE_WINDOW_STEPS = 20
OUT_OF_MEMORY_WORDS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # of the CPU; of a handle's workspace


class TrainingOutOfMemory(LLMAssetsError):
    """A step did not fit into memory, however it is cut into forward passes."""


class PlanTooLarge(LLMAssetsError):
    """A step did not fit in one of several processes; all of them have to start again, under the next smaller plan."""


class TrainingDiverged(LLMAssetsError):
    """The loss or the gradient is not finite, or the loss has left where it began."""


DIVERGED_REMEDY = "Lower training.learning_rate, raise warmup_share, or look at these rows."


class StepRunner:
    """Computes the gradient of one optimiser step after the other.

    Attributes:
        plan: The layout in force.
        rows: Names of the rows of the step under way.
        lengths: Their tokens.
        supervised: Their tokens with a loss.
    """

    def __init__(
        self,
        config: TrainingConfig,
        plans: Sequence[MemoryPlan],
        *,
        adopt: Callable[[MemoryPlan], None],
        log: Callable[[str], None],
    ) -> None:
        """Begin under the first plan.

        Args:
            config: The training settings.
            plans: The plan to begin with, then smaller ones to fall back to.
            adopt: Called with a plan before its first step: switches recomputation and remembers it.
            log: Receives a line when a plan is given up.
        """
        self.config, self.plans, self._adopt, self._log = config, list(plans), adopt, log
        self.rows: list[str] = []
        self.lengths: list[int] = []
        self.supervised = 0
        self._adopt(self.plan)

    @property
    def plan(self) -> MemoryPlan:
        """The layout in force."""
        return self.plans[0]

    def probe(self, trainer: Any, model: Any, packs: Sequence[Sequence[Row]]) -> None:
        """Run the heaviest packs once, with room for the optimiser, and forget it: what does not fit fails now.

        A continued run has its moments already, and needs no room beside them.

        Args:
            trainer: The trainer, for its precision and device.
            model: The model as the trainer has wrapped it.
            packs: The heaviest packs, as many as the largest forward pass holds.
        """
        import torch

        random = _random_state()
        to_come = bytes_to_come(self.plan, trainer.optimizer, trainer.args.device)
        room = torch.empty(to_come, dtype=torch.uint8, device=trainer.args.device)
        self._gradient(trainer, model, packs)
        del room
        model.zero_grad(set_to_none=True)
        _restore_random_state(random)

    def step(self, trainer: Any, model: Any, packs: Sequence[Sequence[Row]]) -> "torch.Tensor":
        """Leave the gradient of a step in the model's parameters, none at all if its loss is skipped as a spike.

        Args:
            trainer: The trainer, for its precision, device and log history.
            model: The model as the trainer has wrapped it.
            packs: This process's packs of the step.

        Returns:
            The step's mean loss in nats per supervised token, scalar; with several processes this one's part of the
            sum, times their number, since both losses and gradients are averaged over processes.

        Raises:
            TrainingDiverged: the loss is not finite; names the step and rows.
            TrainingOutOfMemory: no plan is left.
            PlanTooLarge: one is, and other processes have to take it too.
        """
        self.rows = [row.row_id for pack in packs for row in pack]
        self.lengths = [len(row.input_ids) for pack in packs for row in pack]
        self.supervised = supervised_tokens(packs)
        parts = self._gradient(trainer, model, packs)
        loss = sum(parts[1:], parts[0])
        value = _mean_over_processes(trainer.accelerator, loss)
        step = trainer.state.global_step + 1
        if not math.isfinite(value):
            self._name_culprits(parts, packs)
            raise TrainingDiverged(f"Loss is {value} at step {step}, on {self.named_rows()}. {DIVERGED_REMEDY}")
        usual = self._usual_loss(trainer.state.log_history)
        if usual is not None and value > usual * (self.config.skip_loss_spikes or math.inf):
            model.zero_grad(set_to_none=True)
            trainer.state.log_history.append({"step": step, "skipped_loss": value})
            self._log(f"step {step}: loss {value:.4f} is a spike (usual {usual:.4f}), update left out")
        return loss

    def named_rows(self) -> str:
        """The rows of the step under way, for a message."""
        named = ", ".join(self.rows[:NAMED_ROWS])
        return f"rows {named}" + (f" and {len(self.rows) - NAMED_ROWS} more" if len(self.rows) > NAMED_ROWS else "")

    def _gradient(self, trainer: Any, model: Any, packs: Sequence[Sequence[Row]]) -> "list[torch.Tensor]":
        """Gradient of the packs' mean loss, and the part of each forward pass in that loss."""
        random = _random_state()
        while True:
            try:
                return self._attempt(trainer, model, packs)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            # outside the except block: the exception's traceback would keep the step's tensors alive
            self._fall_back(trainer, model, reason)
            _restore_random_state(random)

    def _attempt(self, trainer: Any, model: Any, packs: Sequence[Sequence[Row]]) -> "list[torch.Tensor]":
        accelerator, size = trainer.accelerator, self.plan.micro_batch_packs
        tokens = _over_processes(accelerator, supervised_tokens(packs))
        passes = [packs[at : at + size] for at in range(0, len(packs), size)]
        parts = []
        for number, some in enumerate(passes, 1):
            batch = trainer._prepare_inputs(lay_end_to_end(some))
            with nullcontext() if number == len(passes) else accelerator.no_sync(model):
                with trainer.compute_loss_context_manager():
                    part = model(**batch).sum() * (accelerator.num_processes / max(1, tokens))
                accelerator.backward(part)
            parts.append(part.detach())
        return parts

    def _fall_back(self, trainer: Any, model: Any, reason: str) -> None:
        import torch

        model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        step, given_up = trainer.state.global_step + 1, self.plans.pop(0)
        if not self.plans:
            raise TrainingOutOfMemory(
                f"Step {step} did not fit into memory with {given_up.micro_batch_packs} pack per forward pass and "
                f"gradient checkpointing {'on' if given_up.gradient_checkpointing else 'off'}: {reason}. "
                "Set training.gradient_checkpointing auto, lower tokenization.max_length_tokens or training.rank, or "
                "use method qlora."
            )
        self._adopt(self.plan)
        recomputed = ", activations recomputed" if self.plan.gradient_checkpointing else ""
        told = (
            f"step {step} was out of memory with {given_up.micro_batch_packs} packs per forward pass; from here on "
            f"{self.plan.micro_batch_packs} packs x {self.plan.accumulation_steps} passes{recomputed}: the same step"
        )
        if ranks.world() > 1:
            raise PlanTooLarge(told)
        self._log(told)

    def _usual_loss(self, history: Sequence[dict[str, Any]]) -> float | None:
        if self.config.skip_loss_spikes is None:
            return None
        skipped = {entry["step"] for entry in history if "skipped_loss" in entry}
        losses = [entry["loss"] for entry in history if "loss" in entry and entry["step"] not in skipped]
        return median(losses[-SPIKE_WINDOW_STEPS:]) if len(losses) >= SPIKE_WINDOW_STEPS else None

    def _name_culprits(self, parts: "Sequence[torch.Tensor]", packs: Sequence[Sequence[Row]]) -> None:
        """Narrow the step's rows to the forward passes whose loss is not finite."""
        size = self.plan.micro_batch_packs
        broken = [number for number, part in enumerate(parts) if not math.isfinite(float(part))]
        self.rows = [row.row_id for n in broken for pack in packs[n * size : (n + 1) * size] for row in pack]


def bytes_to_come(plan: MemoryPlan, optimizer: Any, device: "torch.device") -> int:
    """Bytes of its plan that an optimiser does not hold on the device yet: all before the first step, none after."""
    import torch

    values = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [sharding.own_part(value) for value in values if isinstance(value, torch.Tensor)]
    return max(0, plan.optimizer - sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type))


def _over_processes(accelerator: Any, count: int) -> int:
    """A count summed over the processes that train together."""
    if accelerator.num_processes == 1:
        return count
    import torch

    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device), reduction="sum"))


def _mean_over_processes(accelerator: Any, loss: "torch.Tensor") -> float:
    """A loss averaged over the processes that train together, so that all of them decide alike."""
    return float(loss if accelerator.num_processes == 1 else accelerator.reduce(loss.clone(), reduction="mean"))


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    said = any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def _random_state() -> list[Any]:
    import torch

    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _restore_random_state(state: list[Any]) -> None:
    import torch

    torch.set_rng_state(state[0])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state[1:])
