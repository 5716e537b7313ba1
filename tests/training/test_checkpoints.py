import pytest

from llm_assets.training.checkpoints import CheckpointMismatch, claim, latest_complete, seal


def checkpoint(work, step):
    directory = work / f"checkpoint-{step}"
    directory.mkdir()
    (directory / "weights").write_text(f"weights of {step}")
    return directory


def test_the_newest_sealed_checkpoint_is_found_by_number(tmp_path):
    for step in (9, 10):
        seal(checkpoint(tmp_path, step))
    assert latest_complete(tmp_path).name == "checkpoint-10"


def test_an_unsealed_checkpoint_is_removed(tmp_path):
    seal(checkpoint(tmp_path, 1))
    cut = checkpoint(tmp_path, 2)
    assert latest_complete(tmp_path).name == "checkpoint-1"
    assert not cut.exists()


def test_a_sealed_checkpoint_with_other_bytes_is_removed(tmp_path):
    torn = checkpoint(tmp_path, 1)
    seal(torn)
    (torn / "weights").write_text("torn")
    assert latest_complete(tmp_path) is None


def test_a_work_directory_of_another_dataset_is_refused(tmp_path):
    claim(tmp_path, {"dataset": "aaa", "config": "c"})
    claim(tmp_path, {"dataset": "aaa", "config": "c"})
    with pytest.raises(CheckpointMismatch, match="dataset aaa, now bbb"):
        claim(tmp_path, {"dataset": "bbb", "config": "c"})
