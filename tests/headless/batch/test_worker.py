"""Workers: their answers to errors, and their processes when they are killed or cannot be started."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from batches import Batch, drive, images, task_of, wait_until
from error_checks import check_facts, raises
from svd_stages.headless.batch import process_pool
from svd_stages.headless.batch.driver import Options
from svd_stages.headless.batch.process_pool import ProcessPool
from svd_stages.headless.batch.spool import open_spool
from svd_stages.headless.batch.worker import Worker, explain_error
from svd_stages.headless.batch.worker_pool import Answer
from svd_stages.svd_core.errors import ImageError, MemoryBudgetError, NodeError, OutputError
from svd_stages.svd_core.utils import user_tempdir


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class OutOfMemoryError(RuntimeError):
    """Stands for torch's error of this name."""


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
def test_errors_are_classified(error, state, why):
    outcome = explain_error(error)
    assert (outcome["state"], outcome.get("why", outcome.get("code"))) == (state, why)


def worker_of(batch: Batch, **config: Any) -> Worker:
    batch.config.update(config)
    return Worker(batch.setup())


def test_calls_without_the_greeting_are_ignored(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(2))
    worker, (first, second) = worker_of(batch), [task.as_dict() for task in batch.tasks()]
    assert worker.work("a", first, None, 1) is None and worker.drain("a") is None
    assert "refused" not in worker.hello("a")
    assert worker.work("a", first, second, 1) == []
    assert worker.work("b", second, None, 1) is None and worker.drain("b") is None
    assert "refused" not in worker.hello("b")
    assert worker.drain("b") == [], "a video started under another greeting is dropped"
    assert worker.work("b", second, None, 1) == []
    assert [each["state"] for each in worker.drain("b") or []] == ["done"]
    assert batch.states() == {"done": 2}


def test_a_worker_with_another_run_folder_or_another_version_is_refused(tmp_path):
    batch, other = (Batch.planned(tmp_path / name, images(1), describe={"code": "0.2"}) for name in ("run", "other"))
    setup = replace(batch.setup(), shared={"code": "0.1"})
    missing, elsewhere = (replace(setup, run=str(path)) for path in (tmp_path / "missing", other.path))
    for each, code, facts in (
        (missing, "batch.run_folder", [tmp_path / "missing"]),
        (elsewhere, "batch.run_folder", [other.path]),
        (setup, "batch.worker_differs", ["code", "0.2", "0.1"]),
    ):
        refused = Worker(each).hello("a")["refused"]
        assert refused["code"] == code
        check_facts(refused["message"], *facts)
    assert not (tmp_path / "missing").exists()


def test_a_task_that_failed_in_encoding_is_rendered_again_on_retry(tmp_path):
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


def test_a_temporary_folder_of_another_user_is_not_used(tmp_path, monkeypatch, caplog):
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
    assert spool.find("0" * 64) is None
    (tmp_path / "ours" / "a").chmod(0o775)  # the default umask of some systems
    assert user_tempdir.private_folder("a").stat().st_mode & 0o77 == 0
    monkeypatch.setattr(user_tempdir.os, "getuid", lambda: 54321)
    with raises(PermissionError, None, tmp_path / "ours"):
        user_tempdir.private_folder("a")


def test_a_user_without_a_name_has_a_folder_too(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    monkeypatch.setattr(user_tempdir.getpass, "getuser", nameless)
    assert user_tempdir.temp_folder().name == f"svd-stages-{os.getuid()}"


def wait_for(pool: ProcessPool) -> Answer:
    """Poll until a pool has an answer."""
    answers: list[Answer] = []
    wait_until(lambda: answers or answers.extend(pool.answers(0.1)))
    return answers[0]


@pytest.fixture
def start_pool() -> Iterator[Callable[..., ProcessPool]]:
    """Start process pools of batches and close them afterwards."""
    with contextlib.ExitStack() as stack:
        yield lambda batch, count=1: stack.enter_context(contextlib.closing(ProcessPool(batch.setup(), [{}] * count)))


def test_the_answer_of_a_process_that_is_killed_is_ignored(tmp_path, start_pool):
    batch = Batch.planned(tmp_path / "run", images(2))
    pool = start_pool(batch)
    pool.ask(0, "hello", "a")
    assert wait_for(pool).value["device"] == "fake"
    pool.ask(0, "work", "a", task_of(images(2)[0]).as_dict(), None, 1)
    wait_until(lambda: pool._messages.qsize() == 2)  # that it has begun, and the answer, which nobody has read
    pool.end(0)
    answer = wait_for(pool)
    assert answer.died == "killed by signal 9" and pool.answers(0.2) == []
    pool.ask(0, "hello", "b")
    assert wait_for(pool).value["device"] == "fake"


def test_a_request_to_a_dead_process_is_answered_by_the_next_one(tmp_path, start_pool):
    batch = Batch.planned(tmp_path / "run", images(1))
    pool = start_pool(batch)
    pool.ask(0, "hello", "a")
    wait_for(pool)
    pool._processes[0].popen.kill()
    pool._processes[0].popen.wait()
    pool.ask(0, "work", "a", batch.tasks()[0].as_dict(), None, 1)
    answer = wait_for(pool)
    assert (answer.value, answer.died) == (None, None) and pool.answers(0.3) == []
    pool.ask(0, "hello", "b")
    assert wait_for(pool).value["device"] == "fake"


def test_a_worker_that_cannot_start_now_asks_for_a_retry(tmp_path, monkeypatch):
    batch = Batch.planned(tmp_path / "run", images(2), describe={"fails": "3"})
    worker = Worker(replace(batch.setup(), shared={"fails": "3"}))

    def stale(self: Path) -> bytes:
        raise OSError(errno.ESTALE, "ESTALE", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", stale)
        check_facts(worker.hello("a")["again"], "ESTALE")
    assert worker.hello("a")["device"] == "fake"


def test_a_process_that_cannot_be_started_now_is_started_later(tmp_path, monkeypatch, caplog, start_pool):
    start, failures = subprocess.Popen, [OSError(errno.ENOMEM, "ENOMEM")] * 2

    def sometimes(*arguments: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return start(*arguments, **named)

    batch = Batch.planned(tmp_path / "run", images(4))
    monkeypatch.setattr(process_pool.subprocess, "Popen", sometimes)
    drive(batch, start_pool(batch), Options(pause=0.01))
    assert batch.states() == {"done": 4} and not failures
    check_facts(caplog.text, "ENOMEM", 1)


def test_a_run_keeps_notes_in_records_and_deletes_its_spool(tmp_path):
    batch = Batch.planned(tmp_path / "run", ["ok-1.png", "noted-1.png", "ok-crashes_in_encoding.png"])
    assert batch.run("1") == 0
    records = [batch.folder.read_record(task.id) for task in batch.tasks()]
    notes = [record and [note["code"] for note in record["notes"]] for record in records]
    assert notes == [[], ["fake.note"], None]
    assert not (user_tempdir.temp_folder() / "batch" / batch.setup().spool).exists()
