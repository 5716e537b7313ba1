import pytest
import torch

from llm_assets.training.checkpoints import CheckpointMismatch, CheckpointNotWritten, claim, explained, seal
from llm_assets.training.checkpoints import latest_complete as latest

RUN = {"dataset": "aaa", "config": "c"}


def checkpoint(work, step):
    directory = work / f"checkpoint-{step}"
    directory.mkdir()
    (directory / "weights").write_text(f"weights of {step}")
    return directory


@pytest.fixture
def said():
    return []


def test_the_newest_sealed_checkpoint_is_found_by_number(tmp_path, said):
    for step in (9, 10):
        seal(checkpoint(tmp_path, step), RUN)
    assert latest(tmp_path, RUN, said.append).name == "checkpoint-10"


def test_an_unsealed_checkpoint_is_removed(tmp_path, said):
    seal(checkpoint(tmp_path, 1), RUN)
    cut = checkpoint(tmp_path, 2)
    assert latest(tmp_path, RUN, said.append).name == "checkpoint-1"
    assert not cut.exists()
    assert said == ["checkpoint-2 was not finished: falling back to the one before"]


def test_a_sealed_checkpoint_with_other_bytes_is_removed(tmp_path, said):
    torn = checkpoint(tmp_path, 1)
    seal(torn, RUN)
    (torn / "weights").write_text("torn")
    assert latest(tmp_path, RUN, said.append) is None
    assert "checkpoint-1 has other bytes in weights than were written" in said[0]


def test_a_checkpoint_moved_here_from_another_run_is_refused(tmp_path, said):
    seal(checkpoint(tmp_path, 1), {**RUN, "dataset": "bbb"})
    with pytest.raises(CheckpointMismatch, match="dataset bbb, now aaa"):
        latest(tmp_path, RUN, said.append)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, said):
    seal(checkpoint(tmp_path, 1), RUN)
    full = pytest.raises(CheckpointNotWritten, match=r"No space left.*Free space .*continues after step 1")
    with full, explained(checkpoint(tmp_path, 2)):
        raise OSError(28, "No space left on device")
    assert latest(tmp_path, RUN, said.append).name == "checkpoint-1"
    assert said == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.distributed.DistError])
def test_lost_memory_or_a_lost_process_is_not_taken_for_a_full_disk(tmp_path, error):
    with pytest.raises(error, match="lost"), explained(checkpoint(tmp_path, 2)):
        raise error("lost")


def test_a_work_directory_of_another_dataset_is_refused(tmp_path):
    claim(tmp_path, {"dataset": "aaa", "config": "c"})
    claim(tmp_path, {"dataset": "aaa", "config": "c"})
    with pytest.raises(CheckpointMismatch, match="dataset aaa, now bbb"):
        claim(tmp_path, {"dataset": "bbb", "config": "c"})
