"""The driver's own decisions and its speed, with workers that answer at once."""

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
from svd_stages.headless.batch.ledger import Ledger, LedgerUpdate
from svd_stages.headless.batch.worker_pool import Answer
from svd_stages.svd_core.errors import BatchError


def outcomes(told: list[dict[str, Any]]) -> dict[str, str]:
    return {each["image"]: each["state"] for each in told}


def test_every_row_is_handed_out_once_and_the_next_one_is_read_ahead(tmp_path):
    batch, pool, told = Batch.planned(tmp_path / "run", images(50)), Scripted(3), []
    drive(batch, pool, told=told)
    worked = [each for each in pool.asked if each[1] == "work"]
    assert sorted(image for _, _, image, _ in worked) == images(50)
    assert outcomes(told) == dict.fromkeys(images(50), "done")
    ahead = {(worker, upcoming) for worker, _, _, upcoming in worked if upcoming}
    assert ahead and ahead <= {(worker, image) for worker, _, image, _ in worked}


def test_a_worker_that_refuses_leaves_the_work_to_the_others_and_the_last_one_ends_the_batch(tmp_path):
    def hello(worker: int) -> Any:
        refused = {"refused": {"code": "checkpoint.not_found", "message": "no such model", "exit_status": 3}}
        return refused if worker else {"host": "h", "pid": 1, "makes": {}, "device": "d", "probe": "10"}

    batch, told = Batch.planned(tmp_path / "run", images(9)), []
    drive(batch, Scripted(3, hello), told=told)
    assert set(outcomes(told).values()) == {"done"}
    batch = Batch.planned(tmp_path / "other", images(9))
    with raises(BatchError, "checkpoint.not_found") as error:
        drive(batch, Scripted(2, lambda worker: hello(1)))
    assert error.value.exit_status == 3


def test_a_device_that_renders_otherwise_than_its_like_gets_no_work(tmp_path):
    def hello(worker: int) -> Any:
        return {"host": "h", "pid": 1, "makes": {}, "device": "card", "probe": "1040" if worker == 0 else "1050"}

    pool = Scripted(2, hello)
    drive(Batch.planned(tmp_path / "run", images(9)), pool)
    assert {worker for worker, call, _, _ in pool.asked if call == "work"} == {0}
    assert are_alike("1040", "1142") and not are_alike("1040", "1043") and not are_alike("10", "1010")


def test_a_worker_that_dies_before_it_is_ready_is_given_up_after_three_times(tmp_path):
    class NeverReady(Scripted):
        def ask(self, worker: int, call: str, *arguments: Any) -> None:
            self.asked.append((worker, call, None, None))
            self._answers.append(Answer(worker, died="killed by signal 9"))

    pool = NeverReady(2)
    with raises(BatchError, "batch.no_workers", 3, 9):
        drive(Batch.planned(tmp_path / "run", images(5)), pool)
    assert len(pool.asked) == 6


def test_passing_trouble_is_waited_for_and_what_does_not_pass_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "PASSING_TRIES", 3)

    class Shaky(Scripted):
        def answer(self, task: dict[str, Any], worker: int) -> Any:
            tries = sum(image == task["image"] for _, _, image, _ in self.asked)
            stays = task["image"] == images(3)[0]
            passing = {"task": task["id"], "state": "again", "why": "passing", "message": "EIO."}
            return passing if stays or (task["image"] == images(3)[1] and tries < 3) else None

    told: list[dict[str, Any]] = []
    batch = Batch.planned(tmp_path / "run", images(3))
    drive(batch, Shaky(), Options(pause=0.01), told=told)
    assert outcomes(told) == dict(zip(images(3), ["failed", "done", "done"], strict=True))
    assert batch.folder.walk().failed[task_of(images(3)[0]).id]["code"] == "output.failed"


def test_short_memory_is_tried_on_another_worker_before_the_row_fails(tmp_path):
    class Small(Scripted):
        """Worker 0 has too little memory for any row; no worker has enough for the first one."""

        def answer(self, task: dict[str, Any], worker: int) -> Any:
            short = {"task": task["id"], "state": "again", "why": "memory", "code": "memory.exhausted", "message": "no"}
            return short if worker == 0 or task["image"] == images(4)[0] else None

    told: list[dict[str, Any]] = []
    batch, pool = Batch.planned(tmp_path / "run", images(4)), Small(2)
    drive(batch, pool, told=told)
    assert outcomes(told) == dict(zip(images(4), ["failed", "done", "done", "done"], strict=True))
    assert batch.folder.walk().failed[task_of(images(4)[0]).id]["code"] == "memory.exhausted"
    assert sum(image == images(4)[0] for _, _, image, _ in pool.asked) == 3


def test_a_process_that_died_unheard_loses_no_clip_and_blames_nobody(tmp_path):
    """As on Ray, where a death is heard only when something is asked."""

    class Forgets(Scripted):
        forgotten = False

        def ask(self, worker: int, call: str, *arguments: Any) -> None:
            if call == "work" and arguments[1]["image"] == images(9)[4] and not self.forgotten:
                self.forgotten = True
                self._encoding.clear()
                self.asked.append((worker, call, None, None))
                self._answers.append(Answer(worker, None))
                return
            super().ask(worker, call, *arguments)

    told: list[dict[str, Any]] = []
    batch, pool = Batch.planned(tmp_path / "run", images(9)), Forgets()
    drive(batch, pool, told=told)
    assert outcomes(told) == dict.fromkeys(images(9), "done")
    ledger = Ledger(batch.path / "ledger.sqlite")
    assert ledger.counts()["done"] == 9
    ledger.close()
    greetings = [call for _, call, _, _ in pool.asked].count("hello")
    assert greetings == 2


def test_an_outcome_of_what_a_worker_no_longer_has_is_not_heard(tmp_path):
    class Chatters(Scripted):
        def answers(self, timeout: float) -> list[Answer]:
            late = {"task": "f" * 64, "state": "done", "seconds": 1.0, "is_ours": True}
            found = super().answers(timeout)
            return [Answer(each.worker, [late, *each.value]) if type(each.value) is list else each for each in found]

    told: list[dict[str, Any]] = []
    drive(Batch.planned(tmp_path / "run", images(5)), Chatters(), told=told)
    assert outcomes(told) == dict.fromkeys(images(5), "done") and len(told) == 5


def test_a_worker_that_is_not_ready_yet_is_waited_for(tmp_path):
    tries: list[int] = []

    def hello(worker: int) -> Any:
        tries.append(worker)
        return {"again": "memory is short"} if len(tries) < 3 else Scripted().hello(worker)

    told: list[dict[str, Any]] = []
    drive(Batch.planned(tmp_path / "run", images(3)), Scripted(1, hello), Options(pause=0.01), told=told)
    assert len(tries) == 3 and outcomes(told) == dict.fromkeys(images(3), "done")
    with raises(BatchError, "batch.no_workers", "ENOMEM"):
        never = Scripted(1, lambda worker: {"again": "ENOMEM"})
        drive(Batch.planned(tmp_path / "other", images(3)), never, Options(pause=0.0001))


def test_so_many_failures_end_it_when_that_is_asked(tmp_path):
    class AllFail(Scripted):
        def answer(self, task: dict[str, Any], worker: int) -> Any:
            return {"task": task["id"], "state": "failed", "code": "node", "message": "no"}

    told: list[dict[str, Any]] = []
    drive(Batch.planned(tmp_path / "run", images(9)), AllFail(), Options(limit=1, failures=1), told=told)
    assert list(outcomes(told).values()) == ["failed"]


def test_a_limit_counts_what_is_done(tmp_path):
    class FirstFail(Scripted):
        def answer(self, task: dict[str, Any], worker: int) -> Any:
            failed = {"task": task["id"], "state": "failed", "code": "image.damaged", "message": "no"}
            return failed if task["image"] in images(9)[:2] else None

    told: list[dict[str, Any]] = []
    drive(Batch.planned(tmp_path / "run", images(9)), FirstFail(2), Options(limit=3), told=told)
    assert sorted(outcomes(told).values()) == ["done"] * 3 + ["failed"] * 2


def test_a_row_that_must_be_alone_is_not_read_ahead(tmp_path):
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


def test_a_ledger_that_can_never_be_written_ends_the_batch(tmp_path, monkeypatch):
    def refuses(*_: Any) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(Ledger, "record", refuses)
    with pytest.raises(sqlite3.OperationalError):
        drive(Batch.planned(tmp_path / "run", images(4)), Scripted())


def test_other_libraries_or_precision_than_the_run_began_with_get_no_work():
    environment = Environment(where="run/env.json")
    told = {"host": "h", "device": "card", "makes": {"torch": "2.13", "precision": "auto on cuda"}, "probe": "10"}
    assert environment.take(told) is None
    again = Environment.from_dict(environment.as_dict({}), "run/env.json")
    assert again.take(told) is None
    other = again.take({**told, "makes": {"torch": "2.13", "precision": "auto on cpu"}})
    check_error(other, "batch.worker_differs", "precision", "cpu", "cuda", "run/env.json")
    faulty = again.take({**told, "probe": "20"})
    check_error(faulty, "batch.worker_differs", "card", "run/env.json")
    damaged = Environment.from_dict({"makes": 5, "probes": {"card": "no hex", "cpu": 7}}, "env.json")
    assert damaged.probes == {"card": "no hex"}
    check_error(damaged.take(told), "batch.worker_differs", "card", "env.json")


def test_after_a_death_the_rows_of_that_worker_go_on_alone(tmp_path):
    class Dies(Scripted):
        dead = False

        def answer(self, task: dict[str, Any], worker: int) -> Any:
            if task["image"] == images(9)[4] and not self.dead:
                self.dead = True
                self._encoding.clear()
                return Answer(worker, died="killed by signal 11")
            return None

    pool, told = Dies(), []
    drive(Batch.planned(tmp_path / "run", images(9)), pool, told=told)
    assert set(outcomes(told).values()) == {"done"} and len(told) == 9
    death = [image for _, _, image, _ in pool.asked].index(images(9)[4])
    for suspect in images(9)[3:6]:  # encoded, rendered, read ahead
        (place,) = [n for n, each in enumerate(pool.asked) if each[2] == suspect and n > death]
        assert pool.asked[place][3] is None and pool.asked[place + 1][1] == "drain"
        assert pool.asked[place - 1][1] in ("drain", "hello")


def test_a_driver_keeps_the_attempts_of_the_one_before(tmp_path):
    class AlwaysDies(Scripted):
        def answer(self, task: dict[str, Any], worker: int) -> Any:
            return Answer(worker, died="killed by signal 11")

    class Stops(AlwaysDies):
        def answer(self, task: dict[str, Any], worker: int) -> Any:
            if len([each for each in self.asked if each[1] == "work"]) == 3:
                raise KeyboardInterrupt
            return super().answer(task, worker)

    batch = Batch.planned(tmp_path / "run", images(1))
    with pytest.raises(KeyboardInterrupt):
        drive(batch, Stops())
    pool = AlwaysDies()
    drive(batch, pool)
    assert len([each for each in pool.asked if each[1] == "work"]) == 1, "two of three attempts were made before"
    assert batch.states() == {"quarantined": 1}


def test_a_thousand_rows_a_second_are_kept_account_of(tmp_path):
    batch = Batch.planned(tmp_path / "run", images(5000))
    began = time.monotonic()
    drive(batch, Scripted(8))
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_ten_thousand_pictures_are_planned_and_found_again_in_time(tmp_path):
    """A tenth of what `measure_large_batch.py` measures, in two tenths of the time that a hundred thousand may take."""
    script = Path(__file__).parents[2] / "measure_large_batch.py"
    said = subprocess.run([sys.executable, str(script), "10000"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    told = dict(line.split(": ") for line in said.stdout.splitlines())
    plan, again, drive_all, reconcile = (
        float(told[name].removesuffix(" s")) for name in ("plan", "plan again", "drive", "reconcile")
    )
    assert max(plan, again, reconcile) < 2 and drive_all < 10 and int(told["memory"].split()[0]) < 500, said.stdout
