import numpy as np
import pytest

from llm_assets.data.token_files import write_rows
from llm_assets.training.packs import (
    DatasetUnusable,
    PackSequence,
    Row,
    lay_end_to_end,
    read_packs,
    read_rows,
    require_fitting,
)


def row(ids, labels):
    return Row(np.array(ids), np.array(labels))


def test_documents_lie_end_to_end_with_restarting_positions():
    batch = lay_end_to_end([[row([1, 2, 3], [-100, -100, 3])], [row([4, 5], [-100, 5])]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]


def test_a_learned_token_is_predicted_from_the_token_before_it():
    batch = lay_end_to_end([[row([1, 2, 3], [-100, -100, 3]), row([4, 5], [-100, 5])]])
    assert batch["predicting"].tolist() == [1, 3]
    assert batch["targets"].tolist() == [3, 5]


def test_the_first_label_of_a_packed_document_is_not_learned_from_its_neighbour():
    batch = lay_end_to_end([[row([1, 2], [1, 2]), row([4, 5], [4, 5])]])
    assert batch["targets"].tolist() == [2, 5]


def test_every_epoch_holds_every_pack_once_in_its_own_order():
    sequence = PackSequence([], [[0], [1], [2], [3], [4]], length=10, seed=0)
    first, second = sequence.order[:5].tolist(), sequence.order[5:10].tolist()
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_the_order_depends_on_the_seed_alone():
    orders = [PackSequence([], [[0]] * 9, length=9, seed=seed).order.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_packs_of_one(world):
    packs = [[n] for n in range(7)]
    alone = PackSequence([], packs, length=12, seed=3)
    shares = [PackSequence([], packs, length=12 // world, seed=3, rank=rank, world=world) for rank in range(world)]
    taken = [[share.order[i * world + share.rank] for share in shares] for i in range(12 // world)]
    assert [pack for turn in taken for pack in turn] == alone.order[:12].tolist()


def test_the_heaviest_packs_come_first_and_repeat():
    rows = [row([1] * n, [1] * n) for n in (2, 5, 3)]
    sequence = PackSequence(rows, [[0], [1], [2]], length=3, seed=0)
    assert [len(pack[0].input_ids) for pack in sequence.heaviest(4)] == [5, 3, 2, 5]
    assert sequence.longest_pack_tokens == 5


def test_tokens_count_repeats_and_not_first_labels():
    rows = [row([1, 2, 3], [1, 2, 3]), row([4, 5], [-100, 5])]
    assert PackSequence(rows, [[0, 1]], length=2, seed=0).tokens(2) == (10, 6)


def test_a_split_without_a_supervised_token_is_refused(tmp_path):
    unlearned = {"row_id": "a", "input_ids": [1, 2], "labels": [-100, -100], "prompt_tokens": 1}
    write_rows(tmp_path, "train", [unlearned])
    with pytest.raises(DatasetUnusable, match="not one supervised token"):
        read_rows(tmp_path, "train")


def test_an_empty_validation_split_is_refused_with_both_ways_out(tmp_path):
    write_rows(tmp_path, "validation", [])
    with pytest.raises(DatasetUnusable, match=r"has no row\. Raise split\.validation .* training\.evaluation_rows 0"):
        read_rows(tmp_path, "validation")


def test_rows_of_another_vocabulary_are_refused_by_row():
    with pytest.raises(DatasetUnusable, match="Row r7 holds token id 9; the base model's vocabulary has 9"):
        require_fitting([Row(np.array([1, 9]), np.array([1, 9]), "r7")], vocabulary=9, context_tokens=8)


def test_rows_longer_than_the_context_are_refused_by_row():
    with pytest.raises(DatasetUnusable, match=r"Row r7 has 3 tokens.*trained for 2\. Lower tokenization\.max_length"):
        require_fitting([Row(np.array([1, 2, 3]), np.array([1, 2, 3]), "r7")], vocabulary=9, context_tokens=2)


def test_a_missing_split_is_refused_with_its_name(tmp_path):
    with pytest.raises(DatasetUnusable, match=r"validation\.arrow does not exist"):
        read_rows(tmp_path, "validation")


def test_a_dataset_without_packs_is_refused(tmp_path):
    with pytest.raises(DatasetUnusable, match=r"holds no pack, so there are no training rows\. Look at the drop"):
        read_packs(tmp_path)


def test_rows_are_read_in_file_order(dataset):
    all_rows = read_rows(dataset, "validation")
    assert len(read_rows(dataset, "validation", limit=3)) == 3
    assert np.array_equal(read_rows(dataset, "validation", limit=3)[2].input_ids, all_rows[2].input_ids)
