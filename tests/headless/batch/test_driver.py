"""Decisions and speed of the driver, with workers that answer at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batches import Batch, Scripted, drive, images, task_of
from error_checks import check_error, raises
from svd_stages.headless.batch import driver
from svd_stages.headless.batch.driver import Options
from svd_stages.headless.batch.environment import Environment, are_alike
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.ledger import Ledger, LedgerUpdate
from svd_stages.headless.batch.worker_pool import Answer
from svd_stages.svd_core.errors import BatchError


def outcomes(events: list[dict[str, Any]]) -> dict[str, str]:
    return {event["image"]: event["state"] for event in events}


def run(path: Path, count: int, pool: Scripted, **options: Any) -> dict[str, str]:
    """Drive a new batch; return image -> state. Each task must be reported once."""
    events: list[dict[str, Any]] = []
    drive(Batch.planned(path, images(count)), pool, Options(**options), events=events)
    assert len(events) == len(outcomes(events))
    return outcomes(events)


def dies(worker: int) -> Answer:
    return Answer(worker, died="killed by signal 11")


def test_every_row_is_assigned_once_and_the_next_one_is_read_ahead(tmp_path):
    pool = Scripted(3)
    assert run(tmp_path / "run", 50, pool) == dict.fromkeys(images(50), "done")
    worked = [each for each in pool.asked if each[1] == "work"]
    assert sorted(image for _, _, image, _ in worked) == images(50)
    ahead = {(worker, upcoming) for worker, _, _, upcoming in worked if upcoming}
    assert ahead and ahead <= {(worker, image) for worker, _, image, _ in worked}


def test_a_refused_worker_gets_no_tasks_and_the_last_one_ends_the_batch(tmp_path):
    refused = {"refused": {"code": "checkpoint.not_found", "message": "no such model", "exit_status": 3}}
    hello = Scripted().hello
    pool = Scripted(3, lambda worker: refused if worker else hello(worker))
    assert set(run(tmp_path / "run", 9, pool).values()) == {"done"}
    with raises(BatchError, "checkpoint.not_found") as error:
        run(tmp_path / "other", 9, Scripted(2, lambda worker: refused))
    assert error.value.exit_status == 3


def test_a_device_that_renders_other_pixels_gets_no_tasks(tmp_path):
    hello = Scripted().hello
    pool = Scripted(2, lambda worker: {**hello(worker), "probe": "1040" if worker == 0 else "1050"})
    run(tmp_path / "run", 9, pool)
    assert {worker for worker, call, _, _ in pool.asked if call == "work"} == {0}
    assert are_alike("1040", "1142") and not are_alike("1040", "1043") and not are_alike("10", "1010")


def test_a_worker_that_dies_before_it_is_ready_is_tried_three_times(tmp_path):
    class NeverReady(Scripted):
        def ask(self, worker: int, call: str, *arguments: Any) -> None:
            self.asked.append((worker, call, None, None))
            self._answers.append(dies(worker))

    pool = NeverReady(2)
    with raises(BatchError, "batch.no_workers", 3, 11):
        run(tmp_path / "run", 5, pool)
    assert len(pool.asked) == 6


def test_temporary_errors_are_retried_and_persistent_ones_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "TEMPORARY_TRIES", 3)

    def answer(task: dict[str, Any], worker: int) -> Any:
        tries = sum(image == task["image"] for _, _, image, _ in pool.asked)
        stays = task["image"] == images(3)[0]
        error = {"why": "temporary", "code": "output.failed", "message": "EIO."}
        temporary = {"task": task["id"], "state": "again", **error}
        return temporary if stays or (task["image"] == images(3)[1] and tries < 3) else None

    pool = Scripted(answer=answer)
    states = run(tmp_path / "run", 3, pool, pause=0.01)
    assert states == dict(zip(images(3), ["failed", "done", "done"], strict=True))
    assert RunFolder(tmp_path / "run").scan().failed[task_of(images(3)[0]).id]["code"] == "output.failed"


def test_a_task_that_ran_out_of_memory_is_retried_on_another_worker_before_it_fails(tmp_path):
    def answer(task: dict[str, Any], worker: int) -> Any:
        """Worker 0 has too little memory for any row; no worker has enough for the first one."""
        short = {"task": task["id"], "state": "again", "why": "memory", "code": "memory.exhausted", "message": "no"}
        return short if worker == 0 or task["image"] == images(4)[0] else None

    pool = Scripted(2, answer=answer)
    states = run(tmp_path / "run", 4, pool)
    assert states == dict(zip(images(4), ["failed", "done", "done", "done"], strict=True))
    assert RunFolder(tmp_path / "run").scan().failed[task_of(images(4)[0]).id]["code"] == "memory.exhausted"
    assert sum(image == images(4)[0] for _, _, image, _ in pool.asked) == 3


def test_a_process_that_died_idle_loses_no_video_and_no_row_is_blamed(tmp_path):
    """Ray reports the death of an idle actor only at the next request."""

    def answer(task: dict[str, Any], worker: int) -> Any:
        if task["image"] != images(9)[4] or len(deaths) == 1:
            return None
        deaths.append(worker)
        pool.forget()
        return Answer(worker)

    deaths: list[int] = []
    pool = Scripted(answer=answer)
    assert run(tmp_path / "run", 9, pool) == dict.fromkeys(images(9), "done")
    assert [call for _, call, _, _ in pool.asked].count("hello") == 2


def test_a_worker_that_is_not_ready_yet_is_asked_again(tmp_path):
    tries: list[int] = []

    def hello(worker: int) -> Any:
        tries.append(worker)
        return {"again": "memory is short"} if len(tries) < 3 else Scripted().hello(worker)

    assert run(tmp_path / "run", 3, Scripted(1, hello), pause=0.01) == dict.fromkeys(images(3), "done")
    assert len(tries) == 3
    with raises(BatchError, "batch.no_workers", "ENOMEM"):
        run(tmp_path / "other", 3, Scripted(1, lambda worker: {"again": "ENOMEM"}), pause=0.0001)


def failing(*names: str) -> Any:
    """Return an `answer` that fails these images."""
    failed = {"state": "failed", "code": "image.damaged", "message": "no"}
    return lambda task, worker: {"task": task["id"], **failed} if task["image"] in names else None


def test_a_limit_of_failures_ends_the_batch(tmp_path):
    states = run(tmp_path / "run", 9, Scripted(answer=failing(*images(9))), limit=1, failures=1)
    assert list(states.values()) == ["failed"]


def test_a_limit_counts_finished_videos(tmp_path):
    states = run(tmp_path / "run", 9, Scripted(2, answer=failing(*images(9)[:2])), limit=3)
    assert sorted(states.values()) == ["done"] * 3 + ["failed"] * 2


def test_a_task_that_must_be_alone_is_not_read_ahead(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(4))
    ledger = Ledger(batch.path / "ledger.sqlite")
    ledger.plan(batch.tasks())
    ledger.record([LedgerUpdate(task_of(images(4)[2]).id, "todo", 1)])
    ledger.close()
    pool = Scripted()
    drive(batch, pool)
    assert images(4)[2] not in [ahead for *_, ahead in pool.asked]
    place = [image for _, _, image, _ in pool.asked].index(images(4)[2])
    assert pool.asked[place - 1][1] == pool.asked[place + 1][1] == "drain" and pool.asked[place][3] is None


def test_a_ledger_that_cannot_be_written_ends_the_batch(tmp_path, monkeypatch):
    def refuses(*_: Any) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Ledger, "record", refuses)
    with pytest.raises(sqlite3.OperationalError):
        drive(Batch.planned(tmp_path / "run", images(4)), Scripted())


def test_workers_with_other_libraries_or_precision_than_the_first_are_refused(tmp_path):
    path = tmp_path / "env.json"
    environment = Environment.read(path)
    answer = {"host": "h", "device": "card", "makes": {"torch": "2.13", "precision": "auto on cuda"}, "probe": "10"}
    assert environment.check_worker(answer) is None
    environment.save()
    again = Environment.read(path)
    assert again.check_worker(answer) is None
    other = again.check_worker({**answer, "makes": {"torch": "2.13", "precision": "auto on cpu"}})
    check_error(other, "batch.worker_differs", "precision", "cpu", "cuda", path)
    faulty = again.check_worker({**answer, "probe": "20"})
    check_error(faulty, "batch.worker_differs", "card", path)
    newer = {**answer, "probe": "20", "probe_model": "ab" * 32}
    assert again.check_worker(newer) is None, "a newer version has another model to probe with"
    check_error(again.check_worker({**newer, "probe": "30"}), "batch.worker_differs", "card", path)
    path.write_text('{"makes": 5, "probes": {"card": "no hex", "cpu": 7}}')
    damaged = Environment.read(path)
    assert damaged.probes == {"card": "no hex"}
    check_error(damaged.check_worker(answer), "batch.worker_differs", "card", path)


def test_after_a_death_the_tasks_of_that_worker_are_retried_alone(tmp_path):
    def answer(task: dict[str, Any], worker: int) -> Any:
        if task["image"] != images(9)[4] or len(deaths) == 1:
            return None
        deaths.append(len(pool.asked) - 1)
        pool.forget()
        return dies(worker)

    deaths: list[int] = []
    pool = Scripted(answer=answer)
    assert run(tmp_path / "run", 9, pool) == dict.fromkeys(images(9), "done")
    for suspect in images(9)[3:6]:  # encoded, rendered, read ahead
        (place,) = [n for n, each in enumerate(pool.asked) if each[2] == suspect and n > deaths[0]]
        assert pool.asked[place][3] is None and pool.asked[place + 1][1] == "drain"
        assert pool.asked[place - 1][1] in ("drain", "hello")


def test_a_driver_keeps_the_attempts_of_the_one_before(tmp_path):
    def stops(task: dict[str, Any], worker: int) -> Any:
        if [call for _, call, _, _ in pool.asked].count("work") == 3:
            raise KeyboardInterrupt
        return dies(worker)

    batch = Batch.planned(tmp_path / "run", images(1))
    pool = Scripted(answer=stops)
    with pytest.raises(KeyboardInterrupt):
        drive(batch, pool)
    pool = Scripted(answer=lambda task, worker: dies(worker))
    drive(batch, pool)
    assert [call for _, call, _, _ in pool.asked].count("work") == 1, "two of three attempts were made before"
    assert batch.states() == {"quarantined": 1}


def test_the_driver_s_own_work_is_about_a_millisecond_per_row(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(5000))
    began = time.process_time()
    drive(batch, Scripted(8))
    assert time.process_time() - began < 15


@pytest.mark.slow
def test_ten_thousand_images_are_planned_and_reconciled_in_time():
    """Measure a tenth of `measure_large_batch.py`, with bounds that a slow machine keeps."""
    script = Path(__file__).parents[2] / "measure_large_batch.py"
    result = subprocess.run([sys.executable, str(script), "10000"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    times = {name: float(text.split()[0]) for name, text in (line.split(": ") for line in result.stdout.splitlines())}
    assert max(times["plan"], times["plan again"], times["reconcile"]) < 10, result.stdout
    assert times["drive"] < 10 and times["memory"] < 500, result.stdout
