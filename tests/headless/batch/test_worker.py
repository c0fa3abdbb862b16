"""A worker's side: what it answers to what goes wrong, and its processes when they are ended or cannot be started."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batches import Batch, drive, images, kill, task_of, wait_until
from error_checks import check_facts, raises
from svd_stages.headless.batch import process_pool
from svd_stages.headless.batch.driver import Options
from svd_stages.headless.batch.process_pool import ProcessPool
from svd_stages.headless.batch.worker import Worker, explain_error, open_spool
from svd_stages.headless.batch.worker_pool import Answer
from svd_stages.svd_core.errors import BatchError, ImageError, MemoryBudgetError, NodeError, OutputError
from svd_stages.svd_core.utils import user_tempdir


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (ImageError("damaged", code="image.damaged"), "failed", "image.damaged"),
        (caused(ImageError("damaged", code="image.damaged"), OSError("broken stream")), "failed", "image.damaged"),
        (caused(ImageError("stale", code="image.unreadable"), OSError(errno.ESTALE, "stale")), "again", "temporary"),
        (OSError(errno.EIO, "I/O error"), "again", "temporary"),
        (OSError(errno.ENOSPC, "full"), "again", "no_space"),
        (caused(OutputError("full", code="output.no_space"), OSError(errno.ENOSPC, "full")), "again", "no_space"),
        (OSError(errno.EACCES, "no"), "failed", "output.failed"),
        (MemoryBudgetError("short", code="memory.decode"), "again", "memory"),
        (
            caused(NodeError("x", node_id="1", class_type="X", cause=ValueError()), OutOfMemoryError("CUDA")),
            "again",
            "memory",
        ),
        (MemoryError(), "again", "memory"),
        (ZeroDivisionError("x"), "failed", "error.ZeroDivisionError"),
    ],
)
def test_what_an_error_means_for_its_row(error, state, why):
    outcome = explain_error(error)
    assert (outcome["state"], outcome.get("why", outcome.get("code"))) == (state, why)


def worker_of(batch: Batch, **config: Any) -> Worker:
    batch.config.update(config)
    return Worker(batch.setup())


def test_calls_without_its_greeting_are_not_heard(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(2))
    worker, (first, second) = worker_of(batch), [task.as_dict() for task in batch.tasks()]
    assert worker.work("a", first, None, 1) is None and worker.drain("a") is None
    assert "refused" not in worker.hello("a")
    assert worker.work("a", first, second, 1) == []
    assert worker.work("b", second, None, 1) is None and worker.drain("b") is None
    assert "refused" not in worker.hello("b")
    assert worker.drain("b") == [], "a clip that was begun under another greeting is nobody's"
    assert worker.work("b", second, None, 1) == []
    assert [each["state"] for each in worker.drain("b") or []] == ["done"]
    assert batch.states() == {"done": 2}


def test_a_worker_that_does_not_see_the_run_folder_gets_no_work(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(3))
    elsewhere = Batch.planned(tmp_path / "elsewhere", images(3))
    for path in (tmp_path / "nothing", elsewhere.path):
        pool = ProcessPool(replace(batch.setup(), run=str(path)), [{}])
        try:
            with raises(BatchError, "batch.run_folder", path):
                drive(batch, pool)
        finally:
            pool.close()
    assert not (tmp_path / "nothing").exists() and batch.count() == 0


def test_what_failed_in_encoding_is_rendered_anew_when_it_is_tried_again(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(1))
    (task,) = batch.tasks()
    worker = worker_of(batch)
    worker.hello("a")
    (batch.path / "out").write_text("no folder")
    worker.work("a", task.as_dict(), None, 1)
    (outcome,) = worker.drain("a") or []
    assert (outcome["state"], outcome["code"]) == ("failed", "output.failed")
    (batch.path / "out").unlink()
    worker.work("a", task.as_dict(), None, 1)
    assert [each["state"] for each in worker.drain("a") or []] == ["done"]
    assert batch.count() == 2


def test_nothing_is_left_of_what_was_rendered(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(3), "ok-crashes_in_encoding.png"])
    assert batch.run("1") == 0
    assert not (user_tempdir.temp_folder() / "batch" / batch.setup().spool).exists()


def test_a_folder_of_anothers_is_not_believed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(user_tempdir, "temp_folder", lambda: tmp_path / "ours")
    assert user_tempdir.private_folder("a", "b") == tmp_path / "ours" / "a" / "b"
    assert (tmp_path / "ours" / "a").stat().st_mode & 0o77 == 0
    (tmp_path / "ours" / "batch").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        user_tempdir.private_folder("batch", "x")
    with caplog.at_level(logging.WARNING):
        spool = open_spool("x")
    assert spool.path is None
    check_facts(caplog.text, tmp_path / "ours" / "batch")
    assert list(spool.ids()) == [] and spool.find("0" * 64) is None
    (tmp_path / "ours" / "a").chmod(0o775)  # as the usual umask has it
    assert user_tempdir.private_folder("a").stat().st_mode & 0o77 == 0
    monkeypatch.setattr(user_tempdir.os, "getuid", lambda: 54321)
    with raises(PermissionError, None, tmp_path / "ours"):
        user_tempdir.private_folder("a")


def test_a_user_without_a_name_has_a_folder_too(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(user_tempdir.getpass, "getuser", nameless)
    assert user_tempdir.temp_folder().name == f"svd-stages-{os.getuid()}"


def wait_for(pool: ProcessPool, worker: int = 0) -> Answer:
    found: list[Answer] = []
    wait_until(lambda: found or found.extend(pool.answers(0.1)))
    return found[0]


def test_what_a_process_says_when_it_is_to_be_ended_comes_too_late(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(2), seconds=0.3)
    pool = ProcessPool(batch.setup(), [{}])
    try:
        pool.ask(0, "hello", "a")
        assert wait_for(pool).value["device"] == "stand-in"
        pool.ask(0, "work", "a", task_of(images(2)[0]).as_dict(), None, 1)
        time.sleep(0.6)  # the answer has come, and nobody has heard it
        pool.end(0)
        answer = wait_for(pool)
        assert answer.died == "killed by signal 9" and pool.answers(0.2) == []
        pool.ask(0, "hello", "b")
        assert wait_for(pool).value["device"] == "stand-in"
    finally:
        pool.close()


def test_one_that_is_asked_before_its_death_is_heard_is_answered_by_the_next(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(1))
    pool = ProcessPool(batch.setup(), [{}])
    try:
        pool.ask(0, "hello", "a")
        wait_for(pool)
        first = pool._processes[0]
        kill(first.pid)
        wait_until(lambda: pool._processes[0] is not first)
        pool.ask(0, "work", "a", batch.tasks()[0].as_dict(), None, 1)
        answer = wait_for(pool)
        assert (answer.value, answer.died) == (None, None) and pool.answers(0.3) == []
        pool.ask(0, "hello", "b")
        assert wait_for(pool).value["device"] == "stand-in"
    finally:
        pool.close()


def test_processes_that_die_idle_at_any_time_lose_nothing_and_blame_nobody(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(60), seconds=0.01)
    pool = ProcessPool(batch.setup(), [{}, {}])
    told: list[dict[str, Any]] = []
    killed: set[int] = set()

    class Deadly:
        """The pool, whose processes are killed just after they answered."""

        name, workers, ask, end, close = pool.name, pool.workers, pool.ask, pool.end, pool.close

        def answers(self, timeout: float) -> list[Answer]:
            found = pool.answers(timeout)
            for answer in found:
                if type(answer.value) is list and len(told) // 7 not in killed:
                    killed.add(len(told) // 7)
                    kill(pool._processes[answer.worker].pid)
            return found

    try:
        drive(batch, Deadly(), Options(attempts=10), told=told)  # one row may be met by several of the kills
    finally:
        pool.close()
    assert batch.states() == {"done": 60} and len(told) == 60 and len(killed) >= 5
    with sqlite3.connect(batch.path / "ledger.sqlite") as ledger:
        assert ledger.execute("SELECT sum(attempts) FROM tasks").fetchone()[0] <= len(killed)
    batch.check_clips()


def test_a_worker_that_cannot_begin_now_is_asked_again(tmp_path, monkeypatch, caplog):
    batch = Batch.planned(tmp_path / "run", images(2), describe={"fails": "3"})
    worker = Worker(replace(batch.setup(), shared={"fails": "3"}))

    def stale(self: Path) -> bytes:
        raise OSError(errno.ESTALE, "ESTALE", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        check_facts(worker.hello("a")["again"], "ESTALE")
    assert worker.hello("a")["device"] == "stand-in"


def test_a_process_that_cannot_be_started_again_is_waited_for(tmp_path, monkeypatch, caplog):
    starts = subprocess.Popen
    failing = [True, True]

    def sometimes(*arguments: Any, **named: Any) -> Any:
        if failing and pool_is_up:
            failing.pop()
            raise OSError(errno.ENOMEM, "ENOMEM")
        return starts(*arguments, **named)

    pool_is_up: list[bool] = []
    monkeypatch.setattr(process_pool.subprocess, "Popen", sometimes)
    batch = Batch.planned(tmp_path / "run", images(4))
    pool = ProcessPool(batch.setup(), [{}])
    pool_is_up.append(True)
    try:
        kill(pool._processes[0].pid)
        drive(batch, pool)
    finally:
        pool.close()
    assert batch.states() == {"done": 4} and not failing
    check_facts(caplog.text, "ENOMEM", 1)


def test_a_run_inside_the_folder_of_pictures_is_no_picture(tmp_path):
    from svd_stages.headless.batch.manifest import read_rows

    (tmp_path / "a.png").touch()
    batch = Batch.planned(tmp_path / "videos", images(1))
    (batch.path / "drivers").mkdir()
    (batch.path / "contact_sheet.jpg").touch()
    assert [row.image for row in read_rows(Path(tmp_path))] == ["a.png"]


@pytest.mark.parametrize(("image", "codes"), [("ok-1.png", []), ("noted-1.png", ["stand.in"])])
def test_what_was_noted_of_a_render_is_in_its_record(tmp_path, image, codes):
    batch = Batch.planned(tmp_path / "run", [image])
    assert batch.run("1") == 0
    (task,) = batch.tasks()
    record = batch.folder.read_record(task.id)
    assert record is not None and [note["code"] for note in record["notes"]] == codes
