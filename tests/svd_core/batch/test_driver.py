"""The driver's own decisions and its speed, with workers that answer at once."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from batches import Batch, drive, images, task_of
from svd_stages.svd_core.batch.driver import Options, are_alike
from svd_stages.svd_core.batch.folder import Found
from svd_stages.svd_core.batch.ledger import Ledger
from svd_stages.svd_core.batch.pool import Answer
from svd_stages.svd_core.errors import BatchError


class Scripted:
    """Workers that answer at once: every task is done one call later, unless `answer` says otherwise.

    It writes no clips. `asked` is all that they were asked: (worker, call, task's image or None, image read ahead).
    """

    name = "workers of a test"

    def __init__(self, count: int = 1, hello: Any = None):
        self.workers = range(count)
        self.asked: list[tuple[int, str, str | None, str | None]] = []
        self.hello = hello or (lambda worker: {"host": "h", "pid": worker, "device": "d", "probe": "10"})
        self._encoding: dict[int, str] = {}
        self._answers: list[Answer] = []

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        task, upcoming = (arguments[0], arguments[1]) if call == "work" else (None, None)
        self.asked.append((worker, call, task and task["image"], upcoming and upcoming["image"]))
        if call == "hello":
            self._answers.append(Answer(worker, self.hello(worker)))
            return
        before = self._encoding.pop(worker, None)
        done = [] if before is None else [{"task": before, "state": "done", "seconds": 0.1, "is_ours": True}]
        outcome = None if task is None else self.answer(task, worker)
        if task is not None and outcome is None:
            self._encoding[worker] = task["id"]
        if isinstance(outcome, Answer):
            self._answers.append(outcome)
        else:
            self._answers.append(Answer(worker, [*done, *([outcome] if outcome else [])]))

    def answer(self, task: dict[str, Any], worker: int) -> Any:
        return None

    def answers(self, timeout: float) -> list[Answer]:
        if not self._answers:
            time.sleep(min(timeout, 0.02))
        answers, self._answers = self._answers, []
        return answers

    def end(self, worker: int) -> None:
        self._answers.append(Answer(worker, died="ended"))

    def close(self) -> None:
        pass


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
        return refused if worker else {"host": "h", "pid": 1, "device": "d", "probe": "10"}

    batch, told = Batch.planned(tmp_path / "run", images(9)), []
    drive(batch, Scripted(3, hello), told=told)
    assert set(outcomes(told).values()) == {"done"}
    batch = Batch.planned(tmp_path / "other", images(9))
    with pytest.raises(BatchError, match="no such model") as error:
        drive(batch, Scripted(2, lambda worker: hello(1)))
    assert (error.value.code, error.value.exit_status) == ("checkpoint.not_found", 3)


def test_a_device_that_renders_otherwise_than_its_like_gets_no_work(tmp_path):
    def hello(worker: int) -> Any:
        return {"host": "h", "pid": 1, "device": "card", "probe": "1040" if worker == 0 else "1050"}

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
    with pytest.raises(BatchError, match="died 3 times before it was ready"):
        drive(Batch.planned(tmp_path / "run", images(5)), pool)
    assert len(pool.asked) == 6


def test_passing_trouble_is_waited_for_and_what_does_not_pass_fails(tmp_path, monkeypatch):
    from svd_stages.svd_core.batch import driver

    monkeypatch.setattr(driver, "PASSING_TRIES", 3)
    monkeypatch.setattr(driver, "ANOTHER_FIRST", 0.0)

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
    assert time.monotonic() - began < 5


LARGE = """
import resource, sys, time
from pathlib import Path
from batches import Batch, drive, images
from test_driver import Scripted, many
many(Path(sys.argv[1]), int(sys.argv[2]))
"""


def many(run: Path, count: int) -> None:
    """Print seconds for each part of a large batch, and the memory of its driver in MB."""
    batch = Batch.planned(run, images(count))
    ledger = Ledger(run / "other.sqlite")
    began = time.monotonic()
    ledger.plan(batch.tasks())
    planned = time.monotonic()
    ledger.reconcile(Found(done={task.id for task in batch.tasks()}))
    reconciled = time.monotonic()
    ledger.close()
    drive(batch, Scripted(16))
    driven = time.monotonic()
    print(planned - began, reconciled - planned, driven - reconciled)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.slow
def test_a_hundred_thousand_rows(tmp_path):
    folder = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(folder.parents[1])!r}]\n{LARGE}"
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), "100000"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    parts, memory = said.stdout.splitlines()
    plan, reconcile, drive_all = map(float, parts.split())
    assert plan < 10 and reconcile < 10 and drive_all < 100 and float(memory) < 500, said.stdout
