"""Workers and drivers that are killed: nothing is lost, nothing made twice, nothing half."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import sqlite3
import time
from dataclasses import replace

import psutil
from batches import Batch, drive, images, kill, task_of, wait_until, workers_of
from error_checks import raises
from svd_stages.headless.batch.lock import active_drivers
from svd_stages.headless.batch.process_pool import ProcessPool
from svd_stages.svd_core.errors import BatchError


def test_workers_that_are_killed_cost_at_most_a_render_each(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(200), seconds=0.03)
    drawn = random.Random(0)
    with batch.driver("4") as driver:
        for number in range(1, 5):
            wait_until(lambda number=number: batch.count() >= 40 * number)
            kill(drawn.choice(workers_of(driver.pid)))
        assert driver.wait(120) == 0
    assert batch.states() == {"done": 200}
    assert batch.count() <= 204
    batch.check_clips()


def test_a_driver_that_is_killed_costs_what_was_in_flight(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(200), seconds=0.03)
    for at in (60, 120):
        with batch.driver("4") as driver:
            wait_until(lambda at=at: batch.count() >= at)
            kill(driver.pid)
            driver.wait()
    assert batch.run("4") == 0
    assert batch.states() == {"done": 200}
    assert batch.count() <= 200 + 2 * 4
    batch.check_clips()


def test_the_workers_of_a_killed_driver_end_by_themselves(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(50), seconds=0.2)
    with batch.driver("2") as driver:
        wait_until(lambda: batch.count() >= 4)
        workers = workers_of(driver.pid)
        assert len(workers) == 2
        kill(driver.pid)
        driver.wait()
        wait_until(lambda: not any(is_running(pid) for pid in workers), 60)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_bad_rows_fail_crashing_rows_are_quarantined_and_the_rest_is_done(tmp_path):
    names = images(143) + images(4, "bad") + images(3, "crash")
    random.Random(1).shuffle(names)
    batch = Batch.planned(tmp_path / "run", names, seconds=0.005)
    assert batch.run("2") == 0
    assert batch.states() == {"done": 143, "failed": 4, "quarantined": 3}
    failed = batch.folder.walk().failed
    assert {each["code"] for each in failed.values()} == {"image.damaged", "batch.killed"}
    assert all(len(failed[task_of(name).id]["attempts"]) == 3 for name in images(3, "crash"))
    batch.check_clips()
    before = batch.count()
    assert batch.run("2") == 0
    assert batch.count() == before


def test_a_crash_in_encoding_is_not_laid_on_the_row_that_was_rendered_beside(tmp_path):
    names = [*images(6), "ok-crashes_in_encoding.png", *images(6, "ok-more")]
    batch = Batch.planned(tmp_path / "run", names, seconds=0.1)
    assert batch.run("1") == 0
    assert batch.states() == {"done": 12, "quarantined": 1}
    assert task_of("ok-crashes_in_encoding.png").id in batch.folder.walk().failed


def test_a_hung_render_is_ended_at_its_deadline(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(5), "hang-1.png"])
    assert batch.run("2", "deadline", "1") == 0
    assert batch.states() == {"done": 5, "quarantined": 1}
    (failure,) = batch.folder.walk().failed.values()
    assert failure["code"] == "batch.hung"


def test_a_lost_device_ends_its_process_and_no_other(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(20), "lost-1.png"], seconds=0.02)
    assert batch.run("2") == 0
    assert batch.states() == {"done": 20, "quarantined": 1}
    assert "its device was lost" in json.dumps(batch.folder.walk().failed)
    assert batch.count() <= 20 + 3 + 3


def test_what_nobody_expects_fails_its_row_alone(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(3), "odd-1.png"])
    assert batch.run("1") == 0
    assert batch.states() == {"done": 3, "failed": 1}
    (failure,) = batch.folder.walk().failed.values()
    assert failure["code"] == "error.ZeroDivisionError"


def test_a_full_disk_pauses_and_nothing_is_rendered_again(tmp_path):
    full = tmp_path / "full"
    batch = Batch.planned(tmp_path / "run", images(30), seconds=0.01, full=str(full))
    with batch.driver("2") as driver:
        wait_until(lambda: batch.states()["done"] >= 5)
        full.touch()
        wait_until(lambda: os.strerror(errno.ENOSPC) in batch.said())
        time.sleep(0.5)
        at = batch.count()
        time.sleep(1)
        assert batch.count() <= at + 2 * 2, "it goes on rendering although nothing can be kept"
        full.unlink()
        assert driver.wait(60) == 0
    assert batch.states() == {"done": 30}
    assert batch.count() == 30
    batch.check_clips()


def test_a_worker_that_dies_while_the_disk_is_full_loses_nothing(tmp_path):
    full = tmp_path / "full"
    batch = Batch.planned(tmp_path / "run", images(20), seconds=0.05, full=str(full))
    with batch.driver("2") as driver:
        wait_until(lambda: batch.states()["done"] >= 4)
        full.touch()
        wait_until(lambda: os.strerror(errno.ENOSPC) in batch.said())
        time.sleep(0.3)
        kill(workers_of(driver.pid)[0])
        time.sleep(0.3)
        full.unlink()
        assert driver.wait(60) == 0
    assert batch.states() == {"done": 20}
    batch.check_clips()


def test_a_lost_ledger_is_built_again(tmp_path):
    batch = Batch.planned(tmp_path / "run", [*images(20), *images(2, "bad")], seconds=0.01)
    with batch.driver("2") as driver:
        wait_until(lambda: batch.states()["done"] >= 8)
        kill(driver.pid)
    for file in batch.path.glob("ledger*"):
        file.unlink()
    assert batch.run("2") == 0
    assert batch.states() == {"done": 20, "failed": 2}
    with sqlite3.connect(batch.path / "ledger.sqlite") as ledger:
        assert dict(ledger.execute("SELECT state, count(*) FROM tasks GROUP BY state")) == {"done": 20, "failed": 2}
    assert batch.count() <= 22 + 2


def test_a_driver_that_is_stopped_ends_its_workers_and_the_next_one_goes_on(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(40), seconds=0.1)
    with batch.driver("2") as driver:
        wait_until(lambda: batch.count() >= 6)
        workers = workers_of(driver.pid)
        driver.send_signal(signal.SIGINT)
        assert driver.wait(5) == 130
        wait_until(lambda: not any(is_running(pid) for pid in workers), 60)
    with sqlite3.connect(batch.path / "ledger.sqlite") as ledger:
        assert not ledger.execute("SELECT 1 FROM tasks WHERE state = 'running' OR attempts > 0").fetchall()
    assert batch.run("2") == 0
    assert batch.states() == {"done": 40}
    assert batch.count() <= 40 + 2


def test_a_second_driver_refuses_and_the_first_goes_on(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(60), seconds=0.2)
    with batch.driver("1") as first:
        wait_until(lambda: batch.count() >= 2)
        assert batch.run("1") == 9
        assert "batch.another_driver" in batch.said()
        assert active_drivers(batch.path) == [f"process {first.pid} on {socket.gethostname()}"]
        assert batch.run("1", "shard", "1/2") == 9
        assert first.wait(60) == 0
    assert active_drivers(batch.path) == []
    assert batch.states() == {"done": 60}
    assert batch.count() == 60


def test_shards_in_three_processes_make_all_rows_once(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(60), seconds=0.01)
    with contextlib.ExitStack() as ended:
        drivers = [ended.enter_context(batch.driver("1", "shard", f"{number}/3")) for number in (1, 2, 3)]
        assert [driver.wait(60) for driver in drivers] == [0, 0, 0]
    assert batch.states() == {"done": 60}
    assert set(batch.renders().values()) == {1}
    batch.check_clips()


def test_a_worker_that_differs_from_the_plan_gets_no_work(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(3), describe={"code": "0.2"})
    setup = replace(batch.setup(), shared={"code": "0.1"})
    pool = ProcessPool(setup, [{}])
    try:
        with raises(BatchError, "batch.worker_differs", "code", "0.2", "0.1"):
            drive(batch, pool)
    finally:
        pool.close()
    assert batch.count() == 0
