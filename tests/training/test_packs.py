import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_assets.training.packs import DatasetUnusable, PackSequence, Row, lay_end_to_end, read_packs, read_rows


def row(ids, labels):
    return Row(np.array(ids), np.array(labels))


def test_documents_lie_end_to_end_with_restarting_positions():
    batch = lay_end_to_end([[row([1, 2, 3], [-100, -100, 3])], [row([4, 5], [-100, 5])]])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5]


def test_a_learned_token_is_predicted_from_the_token_before_it():
    batch = lay_end_to_end([[row([1, 2, 3], [-100, -100, 3]), row([4, 5], [-100, 5])]])
    assert batch["logits_to_keep"].tolist() == [1, 3]
    assert batch["shift_labels"].tolist() == [3, 5]


def test_the_first_label_of_a_packed_document_is_not_learned_from_its_neighbour():
    batch = lay_end_to_end([[row([1, 2], [1, 2]), row([4, 5], [4, 5])]])
    assert batch["shift_labels"].tolist() == [2, 5]


def test_every_epoch_holds_every_pack_once_in_its_own_order():
    sequence = PackSequence([], [[0], [1], [2], [3], [4]], length=10, seed=0)
    first, second = sequence.order[:5].tolist(), sequence.order[5:10].tolist()
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4]
    assert first != second


def test_the_order_depends_on_the_seed_alone():
    orders = [PackSequence([], [[0]] * 9, length=9, seed=seed).order.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_tokens_count_repeats_and_not_first_labels():
    rows = [row([1, 2, 3], [1, 2, 3]), row([4, 5], [-100, 5])]
    assert PackSequence(rows, [[0, 1]], length=2, seed=0).tokens(2) == (10, 6)


def test_a_split_without_a_supervised_token_is_refused(tmp_path):
    pq.write_table(pa.table({"input_ids": [[1, 2]], "labels": [[-100, -100]]}), tmp_path / "train.parquet")
    with pytest.raises(DatasetUnusable, match="not one supervised token"):
        read_rows(tmp_path, "train")


def test_a_missing_split_is_refused_with_its_name(tmp_path):
    with pytest.raises(DatasetUnusable, match=r"validation\.parquet does not exist"):
        read_rows(tmp_path, "validation")


def test_a_dataset_without_packs_is_refused(tmp_path):
    with pytest.raises(DatasetUnusable, match="holds no pack"):
        read_packs(tmp_path)


def test_rows_are_read_in_file_order(dataset):
    all_rows = read_rows(dataset, "validation")
    assert len(read_rows(dataset, "validation", limit=3)) == 3
    assert np.array_equal(read_rows(dataset, "validation", limit=3)[2].input_ids, all_rows[2].input_ids)
