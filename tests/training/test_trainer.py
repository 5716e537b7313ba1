import hashlib
import json

import pyarrow.parquet as pq
import pytest

from llm_assets.training.adapted_model import load_adapted
from llm_assets.training.checkpoints import CheckpointMismatch
from llm_assets.training.loss import evaluation_loss
from llm_assets.training.packs import DatasetUnusable, read_rows
from llm_assets.training.trainer import train_adapter


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def on_evaluation(at, loss):
        if at == step:
            raise Interrupted

    return on_evaluation


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


@pytest.fixture
def train(tiny_base, dataset, tmp_path):
    """Train into `out-<name>` with checkpoints in `work-<name>`; returns the report and the published directory."""

    def run(name, config, **options):
        out = tmp_path / f"out-{name}"
        out.mkdir(exist_ok=True)
        inputs = {"base": tiny_base, "dataset": dataset, "work": tmp_path / f"work-{name}", **options}
        report = train_adapter(out=out, config=config, log=lambda _: None, **inputs)
        return report, out

    run.work = lambda name: tmp_path / f"work-{name}"
    return run


def test_the_same_seed_gives_the_same_bytes(train, quick):
    first, second = (train(name, quick(dropout=0.1))[1] for name in "ab")
    assert digests(first) == digests(second)


def test_another_seed_gives_another_adapter(train, quick):
    first, second = (train(str(seed), quick(seed=seed))[1] for seed in (0, 1))
    name = "adapter_model.safetensors"
    assert digests(first)[name] != digests(second)[name]


def test_two_steps_and_two_more_are_four_steps(train, quick):
    config = quick(dropout=0.1, evaluate_every_steps=3)
    whole, expected = train("whole", config)
    with pytest.raises(Interrupted):
        train("cut", config, on_evaluation=interrupt_at(3))
    continued, found = train("cut", config)
    assert continued.history == whole.history
    assert digests(found) == digests(expected)


def test_a_run_killed_after_its_last_step_trains_nothing_again(train, quick):
    _, expected = train("a", quick())
    _, found = train("again", quick(), work=train.work("a"))
    assert digests(found) == digests(expected)


def test_a_half_written_checkpoint_is_skipped(train, quick):
    config = quick()
    _, expected = train("whole", config)
    _, found = train("cut", config)
    last = train.work("cut") / "checkpoint-4"
    (last / "complete.json").unlink()
    (last / "optimizer.pt").write_bytes(b"half")
    _, found = train("cut", config)
    assert digests(found) == digests(expected)


def test_checkpoints_of_another_config_are_refused_by_name(train, quick):
    train("a", quick())
    with pytest.raises(CheckpointMismatch, match=r"checkpoints of another run: config .*delete the directory"):
        train("b", quick(rank=8), work=train.work("a"))


def test_training_lowers_the_loss_below_the_base(train, quick):
    report, _ = train("a", quick(max_steps=12))
    assert report.evaluation_loss < report.base_evaluation_loss
    assert report.final_loss < report.first_loss


def test_accumulating_gives_the_losses_of_one_large_batch(train, quick):
    settings = {"method": "lora", "compute_dtype": "float32", "max_steps": 2}
    together, _ = train("a", quick(batch_packs=8, accumulation_steps=1, **settings))
    apart, _ = train("b", quick(batch_packs=1, accumulation_steps=8, **settings))
    for one, other in zip(together.history, apart.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_early_stopping_publishes_the_best_adapter(train, quick, tiny_base, dataset):
    config = quick(learning_rate=0.5, max_steps=12, evaluate_every_steps=1, early_stopping_patience=2)
    report, out = train("a", config)
    evaluated = [row["evaluation_loss"] for row in report.history]
    assert report.steps < 12
    assert report.evaluation_loss == min(evaluated)
    assert evaluated.index(min(evaluated)) == len(evaluated) - 3
    reloaded = load_adapted(tiny_base, out, "qlora", "bfloat16")
    assert evaluation_loss(reloaded, read_rows(dataset, "validation", 8)) == pytest.approx(
        report.evaluation_loss, rel=1e-2
    )


def test_a_run_killed_after_an_early_stop_stops_at_the_same_step(train, quick):
    stopping = {"evaluate_every_steps": 1, "save_every_steps": 1, "early_stopping_patience": 2}
    config = quick(learning_rate=0.5, max_steps=12, **stopping)
    whole, expected = train("a", config)
    again, found = train("again", config, work=train.work("a"))
    assert whole.steps < 12
    assert again.history == whole.history
    assert digests(found) == digests(expected)


def test_the_published_records_agree(train, quick):
    report, out = train("a", quick())
    record = json.loads((out / "training.json").read_text())
    losses = pq.read_table(out / "loss.parquet").to_pylist()
    assert [row["step"] for row in losses] == [1, 2, 3, 4]
    assert [row["evaluation_loss"] is None for row in losses] == [True, False, True, False]
    assert record["evaluation_loss"] == losses[-1]["evaluation_loss"] == report.evaluation_loss
    assert record["end_token_ids"] == [2]
    assert len(record["quantized_modules"]) == 14
    assert (out / "chat_template.jinja").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lora", "use_dora": True},
        {"method": "lora", "use_rslora": True, "target_modules": ("q_proj", "down_proj")},
        {"method": "full", "learning_rate": 1e-3},
    ],
)
def test_every_method_trains(train, quick, changes):
    report, out = train("a", quick(**changes))
    assert report.evaluation_loss < report.base_evaluation_loss
    assert (out / ("model.safetensors" if changes["method"] == "full" else "adapter_model.safetensors")).exists()


def test_a_run_without_evaluation_needs_no_validation_row(train, quick, dataset, tmp_path):
    import shutil

    from llm_assets.data.token_files import write_rows

    alone = tmp_path / "alone"
    shutil.copytree(dataset, alone)
    write_rows(alone, "validation", [])
    with pytest.raises(DatasetUnusable, match=r"has no row\. Raise split\.validation .* training\.evaluation_rows 0"):
        train("a", quick(), dataset=alone)
    report, out = train("b", quick(evaluation_rows=0), dataset=alone)
    assert report.evaluation_loss is None
    assert report.final_loss < report.first_loss
    assert json.loads((out / "training.json").read_text())["evaluation_loss"] is None


def test_rows_of_another_base_are_refused_before_it_is_loaded(train, quick, tiny_base, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 2}))
    with pytest.raises(DatasetUnusable, match=r"holds token id \d+; the base model's vocabulary has 2"):
        train("a", quick(), base=other)


def test_recomputing_activations_changes_no_loss(train, quick):
    plain, _ = train("a", quick(compute_dtype="float32"))
    recomputed, _ = train("b", quick(compute_dtype="float32", gradient_checkpointing=True))
    for one, other in zip(plain.history, recomputed.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
