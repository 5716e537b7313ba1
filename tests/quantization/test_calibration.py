"""Calibration rows come from training alone, spread over the lengths, the same ones every time."""

import pytest

from llm_assets.data.token_files import read_tokens, write_rows
from llm_assets.quantization.calibration import CalibrationEmpty, calibration_set, held_out_rows, prompts


@pytest.fixture
def dataset(tmp_path):
    lengths = [5] * 60 + [50] * 30 + [400] * 10

    def rows(split, count=None):
        chosen = lengths[:count]
        return [
            {"row_id": f"{split}-{n}", "input_ids": range(length), "labels": range(length), "prompt_tokens": 3}
            for n, length in enumerate(chosen)
        ]

    for split in ("train", "validation", "test"):
        write_rows(tmp_path, split, rows(split))
    return tmp_path


def test_only_training_rows_are_chosen_and_each_once(dataset):
    chosen = calibration_set(dataset, rows=20, seed=0)["row_id"].to_pylist()
    assert all(row_id.startswith("train-") for row_id in chosen)
    assert len(set(chosen)) == 20


def test_every_length_has_its_share(dataset):
    lengths = [len(ids) for ids in calibration_set(dataset, rows=10, seed=0)["input_ids"].to_pylist()]
    assert [lengths.count(length) for length in (5, 50, 400)] == [6, 3, 1]


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_the_file(dataset):
    first = calibration_set(dataset, rows=10, seed=0)["row_id"].to_pylist()
    other_seed = calibration_set(dataset, rows=10, seed=1)["row_id"].to_pylist()
    train = read_tokens(dataset, "train", ["row_id", "input_ids", "labels", "prompt_tokens"]).to_pylist()
    write_rows(dataset, "train", reversed(train))
    assert calibration_set(dataset, rows=10, seed=0)["row_id"].to_pylist() == first
    assert other_seed != first


def test_a_small_dataset_is_used_whole(dataset):
    assert calibration_set(dataset, rows=4096, seed=0).num_rows == 100


@pytest.mark.parametrize(("split", "choose"), [("train", calibration_set), ("validation", held_out_rows)])
def test_an_empty_split_is_refused_by_name(dataset, split, choose):
    write_rows(dataset, split, [])
    with pytest.raises(CalibrationEmpty, match=f"The {split} split of .* has no row"):
        choose(dataset, 8, 0)


def test_prompts_end_where_the_answer_begins(dataset):
    asked = prompts(held_out_rows(dataset, rows=16, seed=0), count=4)
    assert asked["prompt_token_ids"].to_pylist() == [[0, 1, 2]] * 4
    assert all(row_id.startswith("validation-") for row_id in asked["row_id"].to_pylist())
