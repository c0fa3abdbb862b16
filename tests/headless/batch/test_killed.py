"""Workers and drivers that are killed: nothing is lost, rendered twice or left incomplete.

Processes are polled, and renders are counted; no test depends on the speed of the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import sqlite3
import time

import psutil
import pytest
from batches import TIMEOUT, Batch, images, kill, task_of, wait_until, workers_of


@pytest.fixture(params=["processes", "ray"])
def engine(request) -> tuple[str, ...]:
    """Arguments of a driver: plain processes, or actors on Ray."""
    if request.param == "processes":
        return ()
    pytest.importorskip("ray", reason='needs Ray: pip install "svd-stages[ray]"')
    return "ray", "local"


def test_workers_that_are_killed_cost_at_most_a_render_each(tmp_path, engine):
    batch = Batch.planned(tmp_path / "run", images(200), seconds=0.03)
    rng = random.Random(0)
    with batch.driver("4", *engine) as driver:
        for number in range(1, 5):
            wait_until(lambda number=number: batch.count() >= 40 * number)
            kill(rng.choice(workers_of(driver.pid)))
        assert driver.wait(TIMEOUT) == 0, batch.driver_log()
    assert batch.states() == {"done": 200}
    assert batch.count() <= 204
    batch.check_videos()


def test_a_driver_that_is_killed_costs_the_renders_of_its_workers(tmp_path, engine):
    batch = Batch.planned(tmp_path / "run", images(200), seconds=0.03)
    for count in (60, 120):
        with batch.driver("4", *engine) as driver:
            wait_until(lambda count=count: batch.count() >= count)
            workers = workers_of(driver.pid)
            kill(driver.pid)
            driver.wait()
            if not engine:  # processes end by themselves; Ray's actors belong to its own servers
                assert len(workers) == 4
                wait_until(lambda workers=workers: not any(map(is_running, workers)))
    assert batch.run("4", *engine) == 0, batch.driver_log()
    assert batch.states() == {"done": 200}
    assert batch.count() <= 200 + 2 * 4
    batch.check_videos()


def test_a_full_disk_pauses_and_a_worker_that_dies_meanwhile_loses_nothing(tmp_path, engine):
    full = tmp_path / "full"
    batch = Batch.planned(tmp_path / "run", images(30), seconds=0.05, full=str(full))
    with batch.driver("2", *engine) as driver:
        wait_until(lambda: batch.states()["done"] >= 4)
        full.touch()
        wait_until(lambda: os.strerror(errno.ENOSPC) in batch.driver_log())
        time.sleep(1.5)  # a driver that does not pause would render many rows
        assert batch.count() < 30, "it continues to render while the disk is full"
        kill(workers_of(driver.pid)[0])
        full.unlink()
        assert driver.wait(TIMEOUT) == 0, batch.driver_log()
    assert batch.states() == {"done": 30}
    assert batch.count() <= 31
    batch.check_videos()


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_bad_rows_fail_crashing_rows_are_quarantined_and_the_rest_is_done(tmp_path):
    names = images(143) + images(4, "bad") + images(1, "odd") + images(3, "crash")
    random.Random(1).shuffle(names)
    batch = Batch.planned(tmp_path / "run", names, seconds=0.005)
    assert batch.run("2") == 0
    assert batch.states() == {"done": 143, "failed": 5, "quarantined": 3}
    failed = batch.folder.scan().failed
    codes = {"image.damaged", "error.ZeroDivisionError", "batch.killed"}
    assert {failure["code"] for failure in failed.values()} == codes
    assert all(len(failed[task_of(name).id]["attempts"]) == 3 for name in images(3, "crash"))
    batch.check_videos()
    before = batch.count()
    assert batch.run("2") == 0
    assert batch.count() == before


@pytest.mark.parametrize(
    ("name", "options", "code", "attempt"),
    [
        ("ok-crashes_in_encoding.png", (), "batch.killed", "worker 1"),
        ("hang-1.png", ("deadline", "3"), "batch.hung", "it hung"),
        ("lost-1.png", (), "batch.killed", "its device was lost"),
    ],
)
def test_only_the_row_that_kills_its_worker_is_quarantined(tmp_path, name, options, code, attempt):
    batch = Batch.planned(tmp_path / "run", [*images(6), name, *images(6, "ok-more")], seconds=0.05)
    assert batch.run("1", *options) == 0
    assert batch.states() == {"done": 12, "quarantined": 1}
    failure = batch.folder.scan().failed[task_of(name).id]
    assert failure["code"] == code and all(attempt in text for text in failure["attempts"])


def test_a_driver_that_is_interrupted_ends_its_workers_and_the_next_one_continues(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(40), seconds=0.1)
    with batch.driver("2") as driver:
        wait_until(lambda: batch.count() >= 6)
        workers = workers_of(driver.pid)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(TIMEOUT) == 130
        wait_until(lambda: not any(map(is_running, workers)))
    with sqlite3.connect(batch.path / "ledger.sqlite") as ledger:
        assert not ledger.execute("SELECT 1 FROM tasks WHERE state = 'running' OR attempts > 0").fetchall()
    assert batch.run("2") == 0
    assert batch.states() == {"done": 40}
    assert batch.count() <= 40 + 2


def test_shards_in_three_processes_render_each_row_once(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(60), seconds=0.01)
    with contextlib.ExitStack() as stack:
        drivers = [stack.enter_context(batch.driver("1", "shard", f"{number}/3")) for number in (1, 2, 3)]
        assert [driver.wait(TIMEOUT) for driver in drivers] == [0, 0, 0]
    assert batch.states() == {"done": 60}
    assert set(batch.renders().values()) == {1}
    batch.check_videos()
