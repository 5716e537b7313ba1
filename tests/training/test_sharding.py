"""Two processes of a CPU that share a model's weights out, over gloo; GPUs change only what they exchange by."""

import json
import re
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_assets.training import TrainingConfig, ranks, sharding, trained_weights, trainer
from llm_assets.training.checkpoints import damage
from llm_assets.training.memory_plan import plan_memory
from llm_assets.training.model_shape import ModelShape

LLAMA_70B = ModelShape(80, 8192, 64, 8, 128, 28672, 128256)


def curve(report, name):
    return [row[name] for row in report.history]


def weights(out):
    return {name: value for file in out.glob("*.safetensors") for name, value in load_file(file).items()}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture
def held(monkeypatch, tmp_path):
    """Each process writes which share of the values it holds once its model is shared out."""
    plain = sharding.share_out

    def share_and_tell(model, *others):
        plain(model, *others)
        held = sum(value.to_local().numel() for value in model.parameters())
        share = held / sum(value.numel() for value in model.parameters())
        (tmp_path / f"held-{ranks.rank()}.json").write_text(json.dumps(share))

    monkeypatch.setattr(trainer.sharding, "share_out", share_and_tell)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.glob("held-*.json"))]


@pytest.fixture
def gathered(monkeypatch, tmp_path):
    """Each process writes how many bytes of weights and of moments it has kept after gathering them."""
    weights_of, state_of = trained_weights.gathered, sharding.whole_state

    def tell(name, tensors):
        kept = sum(value.nbytes for value in tensors if value is not None)
        (tmp_path / f"gathered-{name}-{ranks.rank()}.json").write_text(json.dumps(kept))

    def weights(model):
        found = weights_of(model)
        tell("weights", found.values())
        return found

    def state(optimizer):
        found = state_of(optimizer)
        tell("moments", [value for values in found["state"].values() for value in values.values()])
        return found

    monkeypatch.setattr(trained_weights, "gathered", weights)
    monkeypatch.setattr(sharding, "whole_state", state)
    return lambda name: [json.loads((tmp_path / f"gathered-{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_processes_that_share_the_weights_out_train_what_one_process_does(
    train_together, together, held, gathered, method
):
    exact = {"method": method, "compute_dtype": "float32", "learning_rate": 1e-3, "early_stopping_patience": 5}
    one, alone = train_together("one", together(processes=1, **exact))
    two, shared = train_together("two", together(sharding="full", gradient_checkpointing=True, **exact))
    assert held() == pytest.approx([0.5, 0.5], abs=0.01)
    assert gathered("weights") == [4 * two.trainable_parameters, 0]
    assert gathered("moments") == [pytest.approx(8 * two.trainable_parameters, rel=0.01), 0]
    assert curve(two, "loss") == pytest.approx(curve(one, "loss"), abs=1e-4)
    assert curve(two, "gradient_norm") == pytest.approx(curve(one, "gradient_norm"), abs=1e-4)
    assert two.evaluation_loss == pytest.approx(one.evaluation_loss, abs=1e-4)
    assert two.trainable_parameters == one.trainable_parameters
    assert largest_difference(weights(shared), weights(alone)) < 1e-4
    assert sorted(path.name for path in shared.iterdir()) == sorted(path.name for path in alone.iterdir())


def test_a_run_that_shares_the_weights_out_continues_to_the_same_bytes(train_together, together, tmp_path):
    config = together(method="lora", sharding="full", dropout=0.1)
    _, out = train_together("a", config)
    expected = weights(out)
    last = tmp_path / "work-a" / "checkpoint-4"
    (last / "trained.safetensors").write_bytes(b"cut short")
    assert damage(last)
    lines = []
    train_together("a", config, log=lines.append)
    assert any("continuing after step 2 of 4" in line for line in lines)
    assert largest_difference(weights(out), expected) == 0


def test_a_plan_counts_slices_and_what_is_gathered_at_a_time():
    """Llama 70B in bfloat16 takes 141 GB; eight devices hold 17.6 GB each, and gather two layers and the vocabulary."""
    config = TrainingConfig(
        method="lora", sharding="full", batch_packs=1, accumulation_steps=8, gradient_checkpointing=True
    )
    size: Any = {"pack_length_tokens": 2048, "device_memory_bytes": 80 * 1024**3, "processes": 8}
    shared = plan_memory(LLAMA_70B, config, **size)
    values = LLAMA_70B.linear_values + LLAMA_70B.other_values
    gathered = LLAMA_70B.other_values + 2 * LLAMA_70B.linear_values // 80
    assert shared.weights == 2 * values // 8 + 2 * gathered
    with pytest.raises(ValueError, match=r"Ways out: .*set training\.processes and sharding full"):
        plan_memory(LLAMA_70B, config.with_parameters({"sharding": "none"}), **size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "qlora"}, "does not work with training.method qlora. Use method lora, or sharding none"),
        ({"optimizer": "paged_adamw_8bit"}, "training.optimizer paged_adamw_8bit. Use optimizer adamw"),
        ({"compute_dtype": "float16"}, "training.compute_dtype float16. Use bfloat16"),
        ({"compile": True}, "training.compile true. Set compile false"),
        ({"trainable_tokens": ("<|im_end|>",)}, "does not train modules_to_save or trainable_tokens. Use method full"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_the_remedy(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainingConfig.model_validate({"method": "lora", "sharding": "full", **settings})
