"""The store publishes everything or nothing, finds one flipped byte, and explains a disk it cannot write."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.resources import artifact_store
from llm_assets.resources.artifact_store import (
    FINGERPRINT_KEY,
    ArtifactCorrupted,
    ArtifactMissing,
    ArtifactStore,
    StoreUnavailable,
)

KEY = dg.AssetKey(["m", "thing"])


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(root=str(tmp_path / "store"))


def publish(store: ArtifactStore, text: str, partition: str | None = None):
    with store.staging() as staged:
        (staged / "a.txt").write_text(text)
        (staged / "sub").mkdir()
        (staged / "sub" / "b.txt").write_text("b")
        return store.publish(KEY, staged, partition)


def record(instance: dg.DagsterInstance, fingerprint: str, partition: str | None = None) -> None:
    event = dg.AssetMaterialization(KEY, metadata={FINGERPRINT_KEY: fingerprint}, partition=partition)
    instance.report_runless_asset_event(event)


def test_equal_content_has_one_fingerprint_and_one_directory(store):
    first, again, other = publish(store, "x"), publish(store, "x"), publish(store, "y")

    assert first == again
    assert other.fingerprint != first.fingerprint
    assert len(store.versions(KEY)) == 2


def test_open_follows_the_event_log_not_the_newest_directory(store):
    instance = dg.DagsterInstance.ephemeral()
    first, second = publish(store, "x"), publish(store, "y")
    record(instance, second.fingerprint)
    record(instance, first.fingerprint)

    assert store.open(instance, KEY) == first


def test_each_partition_has_its_own_artifact(store):
    instance = dg.DagsterInstance.ephemeral()
    for partition in ("2026/01", "2026/02"):
        record(instance, publish(store, partition, partition).fingerprint, partition)

    assert (store.open(instance, KEY, "2026/01").path / "a.txt").read_text() == "2026/01"
    assert store.partitions(KEY) == ["2026/01", "2026/02"]


def test_an_asset_that_was_never_materialized_says_so(store):
    with pytest.raises(ArtifactMissing, match=r"m/thing has no materialization.*Materialize it first"):
        store.open(dg.DagsterInstance.ephemeral(), KEY)


def test_one_flipped_byte_is_found_and_the_file_named(store):
    artifact = publish(store, "hello")
    damaged = artifact.path / "a.txt"
    damaged.chmod(0o644)
    damaged.write_bytes(b"hellp")
    artifact_store._verified_in_this_process.clear()

    with pytest.raises(ArtifactCorrupted, match=r"a\.txt does not have the bytes"):
        store.at(KEY, artifact.fingerprint)


def test_a_deleted_file_is_found_and_named(store):
    artifact = publish(store, "hello")
    (artifact.path / "sub" / "b.txt").unlink()
    artifact_store._verified_in_this_process.clear()

    with pytest.raises(ArtifactCorrupted, match=r"sub/b\.txt"):
        store.at(KEY, artifact.fingerprint)


def test_published_files_are_read_only(store):
    artifact = publish(store, "x")

    assert not (artifact.path / "a.txt").stat().st_mode & 0o222


def test_an_error_while_building_publishes_nothing_and_leaves_no_scratch(store):
    with pytest.raises(ZeroDivisionError), store.staging() as staged:
        (staged / "a.txt").write_text("half")
        1 / 0  # noqa: B018

    assert store.versions(KEY) == []
    assert not any(Path(store.root, ".staging").iterdir())


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "Free space"), (errno.EROFS, "read-only"), (errno.EACCES, "may not write")],
)
def test_a_store_that_cannot_be_written_says_why_and_what_to_do(store, number, remedy):
    with pytest.raises(StoreUnavailable, match=remedy), store.staging() as staged:
        (staged / "a.txt").write_text("x")
        raise OSError(number, os.strerror(number))

    assert store.versions(KEY) == []


def test_a_really_full_file_system_publishes_nothing(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", mount], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a 64 KiB tmpfs needs root")
    try:
        store = ArtifactStore(root=str(mount))
        with pytest.raises(StoreUnavailable, match="disk is full"), store.staging() as staged:
            (staged / "big.bin").write_bytes(b"x" * 1_000_000)
        assert store.versions(KEY) == []
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_really_read_only_file_system_is_refused_before_any_work(tmp_path):
    mount = tmp_path / "frozen"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", mount], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting a read-only tmpfs needs root")
    try:
        with pytest.raises(StoreUnavailable, match="read-only"), ArtifactStore(root=str(mount)).staging():
            pytest.fail("no work may start on a store that cannot take the result")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_staging_left_by_a_killed_process_is_swept_by_the_next(store):
    code = (
        "import sys, time\nfrom llm_assets.resources.artifact_store import ArtifactStore\n"
        f"with ArtifactStore(root={store.root!r}).staging() as staged:\n"
        "    (staged / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    with store.staging():
        assert len(list(Path(store.root, ".staging").glob("*.lock"))) == 2  # a live owner's scratch is left alone
    process.send_signal(signal.SIGKILL)
    process.wait()

    with store.staging():
        assert len(list(Path(store.root, ".staging").glob("*.lock"))) == 1


def test_unfinished_work_is_handed_out_again_for_the_same_inputs_only(store):
    with pytest.raises(KeyboardInterrupt), store.workspace(KEY, "inputs-1") as work:
        (work / "checkpoint").write_text("step 100")
        raise KeyboardInterrupt

    with store.workspace(KEY, "inputs-1") as work:
        assert (work / "checkpoint").read_text() == "step 100"
    with store.workspace(KEY, "inputs-1") as work:
        assert not any(work.iterdir())  # finished cleanly, so nothing is kept


def test_work_begun_on_other_inputs_is_discarded(store):
    with pytest.raises(KeyboardInterrupt), store.workspace(KEY, "inputs-1") as work:
        (work / "checkpoint").write_text("x")
        raise KeyboardInterrupt

    with store.workspace(KEY, "inputs-2") as work:
        assert [path.name for path in work.parent.iterdir() if path.is_dir()] == ["inputs-2"]


def test_two_processes_never_share_a_workspace(store):
    busy = pytest.raises(StoreUnavailable, match="Another process is working")
    with store.workspace(KEY, "d"), busy, store.workspace(KEY, "d"):
        pytest.fail("the lock was given twice")


@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_a_step_dies_with_the_run_that_started_it(tmp_path, start_method):
    code = (
        "import multiprocessing, os, time\n"
        "from llm_assets.resources.artifact_store import ArtifactStore\n"
        "import dagster as dg\n"
        "def step():\n"
        f"    with ArtifactStore(root={str(tmp_path)!r}).workspace(dg.AssetKey('a'), 'd'):\n"
        "        print(os.getpid(), flush=True); time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        f"    p = multiprocessing.get_context({start_method!r}).Process(target=step); p.start(); p.join()\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    run = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    step_pid = int(run.stdout.readline())
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while is_running(step_pid) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not is_running(step_pid)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_pruning_keeps_the_newest_and_the_protected(store):
    oldest, middle, newest = (publish(store, text) for text in "abc")

    assert store.prune(KEY, keep=1, protected=[oldest.fingerprint]) == [middle.fingerprint]
    assert {path.name for path in store.versions(KEY)} == {oldest.fingerprint, newest.fingerprint}


def test_a_version_whose_deletion_was_interrupted_can_be_published_again(store):
    artifact = publish(store, "x")
    (artifact.path / "manifest.json").unlink()

    assert publish(store, "x") == artifact
    assert store.at(KEY, artifact.fingerprint) == artifact


def test_a_process_that_made_the_same_bytes_meanwhile_is_no_conflict(store):
    with store.staging() as mine:
        (mine / "a.txt").write_text("x")
        manifest = artifact_store.build_manifest(mine)
        with store.staging() as theirs:
            (theirs / "a.txt").write_text("x")
            published = store.publish(KEY, theirs)
        artifact_store._move(mine, published.path)  # as if the check before it had come first

    assert manifest["fingerprint"] == published.fingerprint
    assert store.at(KEY, published.fingerprint) == published


def test_an_empty_directory_is_not_published(store):
    with pytest.raises(Exception, match="holds no file"), store.staging() as staged:
        store.publish(KEY, staged)
