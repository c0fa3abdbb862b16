"""The run folder: a task is done when its files and its record exist, also after writers were killed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest
from batches import commit_files
from svd_stages.headless.batch import folder as folder_module
from svd_stages.headless.batch.folder import RunDirScan, RunFolder
from svd_stages.headless.batch.ledger import Ledger, LedgerUpdate, reconcile
from svd_stages.headless.batch.report import damaged
from svd_stages.headless.batch.tasks import Task

A, B = hashlib.sha256(b"a").hexdigest(), hashlib.sha256(b"b").hexdigest()


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def video(folder: RunFolder, task_id: str) -> Path:
    return folder.record_file(task_id).with_suffix(".mp4")


def files(folder: RunFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


def test_a_task_is_done_when_video_and_record_exist(folder):
    assert not folder.is_done(A) and folder.read_record(A) is None
    assert commit_files(folder, A, [b"one"], seed=5)
    record = folder.read_record(A)
    assert folder.is_done(A) and record is not None
    assert record["seed"] == 5 and record["task"] == A
    entry = {"name": f"{A}.mp4", "bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest(), "says": "one"}
    assert record["files"] == [entry]
    assert files(folder) == {f"out/{A[:2]}/{A[2:4]}/{A}.mp4", f"out/{A[:2]}/{A[2:4]}/{A}.json"}
    assert list(damaged(folder)) == []
    video(folder, A).unlink()
    assert not folder.is_done(A)


def test_a_task_is_done_when_all_its_files_exist(folder):
    assert commit_files(folder, A, [b"one", b"two", b"three"], suffix=".PNG")
    record = folder.read_record(A)
    assert record is not None
    assert [path.name for path in folder.media_files(record)] == [f"{A}.png", f"{A}_2.png", f"{A}_3.png"]
    assert [path.read_bytes() for path in folder.media_files(record)] == [b"one", b"two", b"three"]
    folder.media_files(record)[1].unlink()
    assert not folder.is_done(A)


def test_a_finished_task_is_never_changed(folder):
    commit_files(folder, A, [b"first"])

    def states() -> list[tuple[int, int, int]]:
        stats = [path.stat() for path in (video(folder, A), folder.record_file(A))]
        return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]

    before = states()
    assert not commit_files(folder, A, [b"second", b"and more"])
    assert len(files(folder)) == 2
    assert states() == before and video(folder, A).read_bytes() == b"first"


def test_the_next_writer_completes_the_files_of_a_killed_one(folder):
    commit_files(folder, A, [b"of the dead"])
    folder.record_file(A).unlink()
    assert folder.scan() == RunDirScan(orphans={A})
    assert commit_files(folder, A, [b"new"])
    assert (
        video(folder, A).read_bytes() == b"new"
        and list(damaged(folder)) == []
        and folder.scan() == RunDirScan(done={A})
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "\xff",
        "[" * 100_000,
        json.dumps({"task": B, "files": []}),
        json.dumps({"task": A, "files": [{"name": "../../../../x", "bytes": 1, "sha256": ""}]}),
        json.dumps({"task": A, "files": [{"name": "/etc/passwd", "bytes": 1, "sha256": ""}]}),
        json.dumps({"task": A, "files": [{"name": 5, "bytes": 1, "sha256": ""}]}),
        json.dumps({"task": A, "files": [5]}),
        json.dumps({"task": A, "files": {}}),
    ],
)
def test_a_damaged_record_is_replaced(folder, text):
    commit_files(folder, A, [b"one"])
    folder.record_file(A).write_bytes(text.encode("latin-1"))
    assert folder.read_record(A) is None and not folder.is_done(A)
    assert [task_id for task_id, _ in damaged(folder)] == [A]
    assert commit_files(folder, A, [b"two"])
    assert folder.is_done(A) and list(damaged(folder)) == []


def test_changed_files_are_found(folder):
    for name in "abcd":
        commit_files(folder, hashlib.sha256(name.encode()).hexdigest(), [b"video of " + name.encode()])
    video(folder, A).write_bytes(b"video of x")
    os.truncate(video(folder, B), 3)
    video(folder, hashlib.sha256(b"c").hexdigest()).unlink()
    video(folder, hashlib.sha256(b"c").hexdigest()).mkdir()
    faults = dict(damaged(folder))
    assert faults.keys() == {A, B, hashlib.sha256(b"c").hexdigest()} and all(faults.values())


def test_a_commit_stopped_at_any_moment_leaves_nothing_incomplete(folder, monkeypatch):
    """A writer is killed before each call that changes a name. Then the task is complete, or not done."""

    class Killed(BaseException):
        pass

    def dying(call, moments):
        def called(*arguments):
            if next(moments, None) is None:
                raise Killed
            return call(*arguments)

        return called

    for orphan in (False, True):
        for moment in range(6):
            run = RunFolder(folder.path / f"{orphan}-{moment}")
            if orphan:
                commit_files(run, A, [b"x", b"y"])
                run.record_file(A).unlink()
            with monkeypatch.context() as patch, pytest.raises((Killed, StopIteration)):
                moments = iter(range(moment))
                patch.setattr(folder_module, "put_under_new_name", dying(folder_module.put_under_new_name, moments))
                patch.setattr(os, "replace", dying(os.replace, moments))
                commit_files(run, A, [b"one", b"two"])
                raise StopIteration
            if not run.is_done(A):
                assert commit_files(run, A, [b"one", b"two"])
            assert run.is_done(A)
            if not orphan:
                assert list(damaged(run)) == []


def test_one_of_many_concurrent_writers_wins(folder):
    """Threads with different bytes. Half of the rounds start with the files of a killed writer."""
    for number in range(30):
        task_id = hashlib.sha256(f"race {number}".encode()).hexdigest()
        if number % 2:
            commit_files(folder, task_id, [b"of the dead"])
            folder.record_file(task_id).unlink()
        barrier, won = threading.Barrier(6), []

        def race(name: bytes, task_id: str = task_id, barrier: threading.Barrier = barrier, won: list = won) -> None:
            barrier.wait()
            if commit_files(folder, task_id, [name * 5000]):
                won.append(name)

        threads = [threading.Thread(target=race, args=(f"w{each}".encode(),)) for each in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert video(folder, task_id).read_bytes() == won[0] * 5000
    assert list(damaged(folder)) == [] and list((folder.path / "tmp").iterdir()) == []


def test_a_writer_that_is_overtaken_between_video_and_record_changes_nothing(folder, monkeypatch):
    """The other writer puts its record in place after this one looked for it."""
    put = folder_module.put_under_new_name
    began = []

    def overtaken(temporary, path):
        if temporary.name == "record" and not began:
            began.append(True)
            assert commit_files(folder, A, [b"theirs"])
        return put(temporary, path)

    monkeypatch.setattr(folder_module, "put_under_new_name", overtaken)
    assert not commit_files(folder, A, [b"ours!"])
    assert list(damaged(folder)) == [] and video(folder, A).read_bytes() == b"theirs"


def test_a_scan_lists_complete_and_incomplete_tasks(folder):
    assert folder.scan() == RunDirScan()
    ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5)]
    for task_id in ids[:3]:
        commit_files(folder, task_id, [b"x", b"y"])
    folder.record_file(ids[1]).unlink()
    for path in folder.record_file(ids[2]).parent.glob("*.mp4"):
        path.unlink()
    folder.write_failure(ids[3], {"code": "image.missing"})
    folder.write_failure(ids[4], {"code": "batch.killed", "quarantined": True})
    folder.failure_file(ids[4]).write_text("damaged")
    (folder.failed_folder / "notes.json").write_text("{}")
    (folder.path / "out" / "notes").write_text("unrelated")
    (folder.path / "out" / "zz").mkdir()
    scan = folder.scan()
    assert (scan.done, scan.orphans, scan.strays) == ({ids[0]}, {ids[1]}, {ids[2]})
    assert scan.failed == {ids[3]: {"task": ids[3], "code": "image.missing"}}


def test_settings_and_failures_are_read_as_written_and_damage_is_none(folder):
    assert folder.read_settings() is None and folder.read_failure(A) is None
    folder.forget_failure(A)
    folder.write_settings({"graph": {"1": {}}})
    folder.write_failure(A, {"code": "x", "message": "m"})
    assert folder.read_settings() == {"graph": {"1": {}}}
    assert folder.read_failure(A) == {"task": A, "code": "x", "message": "m"}
    folder.settings_file.write_text("{")
    folder.forget_failure(A)
    assert folder.read_settings() is None and folder.scan() == RunDirScan()


def test_reconciling_resets_incomplete_tasks_of_its_own_plan_only(folder):
    """Three incomplete tasks. One belongs to another shard, which may write its record any moment.

    An empty record is none: on disks without hard links, a writer may be killed after it created the empty file.
    """
    tasks = [Task(each, "a.png", "0" * 64) for each in (A, B)]
    other = hashlib.sha256(b"other").hexdigest()
    for task_id in (A, B, other):
        commit_files(folder, task_id, [b"x", b"y"])
    folder.record_file(A).write_bytes(b"")
    folder.record_file(other).unlink()
    for path in folder.record_file(B).parent.glob(f"{B}*.mp4"):
        path.unlink()
    ledger = Ledger(None)
    ledger.plan(tasks)
    ledger.record([LedgerUpdate(A, "running", 1), LedgerUpdate(B, "done", 1)])
    reconcile(folder, ledger)
    assert ledger.counts()["todo"] == 2 and folder.scan() == RunDirScan(orphans={other})
    for task_id in (A, B):
        assert commit_files(folder, task_id, [b"x"])
    reconcile(folder, ledger)
    assert ledger.counts()["done"] == 2
    ledger.close()


def test_a_lost_ledger_is_rebuilt_from_the_folder(folder):
    tasks = [Task(hashlib.sha256(str(number).encode()).hexdigest(), "a.png", "0" * 64) for number in range(20)]
    ledger = Ledger(None)
    ledger.plan(tasks)
    for number, task in enumerate(tasks[:15]):
        if number % 3 == 0:
            commit_files(folder, task.id, [b"x"])
            ledger.record([LedgerUpdate(task.id, "done", 0)])
        else:
            state = "failed" if number % 3 == 1 else "quarantined"
            folder.write_failure(task.id, {"code": f"c{number}", "quarantined": number % 3 == 2})
            ledger.record([LedgerUpdate(task.id, state, 0, f"c{number}")])
    again = Ledger(None)
    again.plan(tasks)
    reconcile(folder, again)
    content = "SELECT id, place, state, attempts, code, task FROM tasks ORDER BY id"
    assert list(again._db.execute(content)) == list(ledger._db.execute(content))
    assert again.counts() == {"todo": 5, "running": 0, "done": 5, "failed": 5, "quarantined": 5}
    ledger.close()
    again.close()
