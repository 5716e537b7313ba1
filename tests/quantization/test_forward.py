"""Row statistics against the reference: the model's own loss, and argmax by hand."""

import numpy as np
import pytest

from llm_assets.quantization.calibration import held_out_rows, prompts
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.forward import answer_with_transformers, opened, row_statistics
from llm_assets.quantization.recovery import measured_recovery


def test_row_statistics_equal_the_models_own_loss_and_predictions(merged, tokenized):
    import torch

    held_out = held_out_rows(tokenized, 4, seed=0)
    measured = row_statistics(merged, held_out, lambda line: None)
    with opened(merged) as model:
        for row, held in enumerate(held_out.to_pylist()):
            ids, labels = held["input_ids"], held["labels"]
            with torch.inference_mode():
                output = model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
            supervised = [position for position, label in enumerate(labels) if label != -100]
            predicted = output.logits[0].argmax(-1).tolist()
            assert measured.tokens[row] == len(supervised)
            assert measured.losses[row] / len(supervised) == pytest.approx(float(output.loss), rel=1e-2, abs=1e-4)
            assert measured.predictions[row].tolist() == [predicted[position - 1] for position in supervised]
            assert measured.correct[row] == sum(predicted[position - 1] == labels[position] for position in supervised)


def test_the_fine_tuned_model_answers_its_questions_and_stops(merged, tokenized):
    held_out = held_out_rows(tokenized, 4, seed=0)
    answers = answer_with_transformers(merged, prompts(held_out, 4), max_new_tokens=48).to_pylist()
    assert [row["row_id"] for row in answers] == held_out["row_id"].to_pylist()
    assert all(row["completion"].startswith("SELECT ") and row["completion"].endswith(";") for row in answers)
    assert {row["finish_reason"] for row in answers} == {"stop"}


def test_a_damaged_layer_fails_recovery(merged, tokenized, tmp_path):
    import torch

    damaged = tmp_path / "damaged"
    with opened(merged) as model:
        torch.nn.init.normal_(model.model.layers[1].mlp.down_proj.weight, std=0.5)
        model.save_pretrained(damaged)
    config = QuantizationConfig(scheme="w4a16", min_recovery=0.5)
    result = measured_recovery(merged, damaged, held_out_rows(tokenized, 12, 0), config, lambda line: None)
    assert not result.passed
    assert result.numbers["loss_delta"] > 0.5


def test_a_cut_off_answer_says_length(merged, tokenized):
    asked = prompts(held_out_rows(tokenized, 1, seed=0), 1)
    assert answer_with_transformers(merged, asked, max_new_tokens=2)["finish_reason"].to_pylist() == ["length"]


def test_rows_without_supervised_tokens_count_nothing(merged, tokenized):
    import pyarrow as pa

    held_out = held_out_rows(tokenized, 1, seed=0)
    masked = pa.array([[-100] * len(held_out["labels"][0])], pa.list_(pa.int32()))
    measured = row_statistics(merged, held_out.set_column(2, "labels", masked), lambda line: None)
    assert (measured.tokens.tolist(), measured.losses.tolist()) == ([0], [0.0])
    assert np.concatenate(measured.predictions).size == 0
