"""What a training run reads, checked against each other and against the device before a weight is loaded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from llm_assets.training import identity, memory_plan, packs, ranks
from llm_assets.training.device import TrainingDevice
from llm_assets.training.memory_plan import MemoryPlan
from llm_assets.training.model_shape import ModelShape
from llm_assets.training.training_config import TrainingConfig

PLAN = "plan.json"


@dataclass(frozen=True)
class RunInputs:
    """What a run reads, checked against each other.

    Attributes:
        origin: Digests of dataset, base and settings.
        shape: The base model's sizes.
        sequence: This process's packs in the order they are trained on.
        held_out: Validation rows; none trains without evaluation.
        steps: Optimiser steps of the whole run.
    """

    origin: dict[str, str]
    shape: ModelShape
    sequence: packs.PackSequence
    held_out: Sequence[packs.Row]
    steps: int


def read_inputs(base: Path, dataset: Path, config: TrainingConfig) -> RunInputs:
    """Read and check the inputs of a run; no weight is loaded.

    Raises:
        DatasetUnusable: a split is missing or supervises nothing, or the rows are for another base.
        ShapeUnknown: the base is no dense decoder.
    """
    settings = config.model_dump(mode="json", exclude={"report_to"})
    origin = {
        "dataset": identity.directory_fingerprint(dataset),
        "base": identity.directory_fingerprint(base),
        "config": identity.settings_digest(settings),
    }
    row_lists = packs.read_packs(dataset)
    rows = packs.read_rows(dataset, "train")
    held_out = packs.read_rows(dataset, "validation", config.evaluation_rows) if config.evaluation_rows else []
    model = json.loads((base / "config.json").read_text())
    shape = ModelShape.from_config(model)
    packs.require_fitting(chain(rows, held_out), shape.vocabulary, model.get("max_position_embeddings") or 2**31)
    steps = config.steps(len(row_lists))
    own_packs = steps * (config.packs_per_step // ranks.world())
    sequence = packs.PackSequence(rows, row_lists, own_packs, config.seed, ranks.rank(), ranks.world())
    return RunInputs(origin, shape, sequence, held_out, steps)


def plans_for(work: Path, inputs: RunInputs, config: TrainingConfig, device: TrainingDevice) -> list[MemoryPlan]:
    """The plan to begin with and the smaller ones after it; a continued run begins with the one it had.

    Raises:
        MemoryTooSmall: not even one pack at a time fits.
    """
    length = inputs.sequence.longest_pack_tokens
    remembered = work / PLAN
    if remembered.exists():
        layout = json.loads(remembered.read_text())
        first = memory_plan.plan_of(
            inputs.shape, config, length, **layout, device_memory_bytes=device.memory_bytes, device=device.kind,
            processes=ranks.world(),
        )  # fmt: skip
    else:
        first = memory_plan.plan_memory(
            inputs.shape, config, pack_length_tokens=length, device_memory_bytes=device.memory_bytes,
            device=device.kind, processes=ranks.world(),
        )  # fmt: skip
    smaller = memory_plan.smaller_plans(
        first, inputs.shape, config, pack_length_tokens=length, device=device.kind, processes=ranks.world()
    )
    return [first, *smaller]
