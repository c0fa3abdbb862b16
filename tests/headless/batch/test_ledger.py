"""The ledger: what it keeps over plans, what it takes from the run folder, and what it refuses to be."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from pathlib import Path

import pytest
from error_checks import check_error, raises
from svd_stages.headless.batch.folder import RunDirScan
from svd_stages.headless.batch.ledger import STATES, Ledger, LedgerUpdate
from svd_stages.headless.batch.tasks import Task
from svd_stages.svd_core.errors import BatchError


def task(name: str, image: str = "a.png") -> Task:
    return Task(hashlib.sha256(name.encode()).hexdigest(), image, "0" * 64, {"9.seed": 1}, 1)


A, B, C, D = map(task, "abcd")


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "ledger.sqlite")
    yield made
    made.close()


def todo(ledger: Ledger) -> list[Task]:
    return [task for _, task, _ in ledger.todo(-1, 1000)]


def states(ledger: Ledger) -> dict[str, tuple]:
    rows = ledger._db.execute("SELECT id, state, attempts, code FROM tasks")
    return {each: tuple(rest) for each, *rest in rows}


def test_tasks_are_to_do_in_the_order_of_the_plan_each_once(ledger):
    ledger.plan([B, A, B, C, A])
    assert todo(ledger) == [B, A, C]
    assert ledger.counts() == {"todo": 3, "running": 0, "done": 0, "failed": 0, "quarantined": 0}


def test_pages_of_what_is_to_do_hold_each_task_once(ledger):
    tasks = [task(str(number)) for number in range(57)]
    rng = random.Random(1)
    for _ in range(4):
        rng.shuffle(tasks)
        ledger.plan(tasks)
        found, place = [], -1
        while page := ledger.todo(place, 5):
            place = page[-1][0]
            found += [each for _, each, _ in page]
        assert found == tasks


def test_a_new_plan_keeps_states_and_attempts_and_forgets_other_tasks(ledger):
    ledger.plan([A, B, C])
    ledger.record([LedgerUpdate(A.id, "done", 1), LedgerUpdate(B.id, "failed", 2, "x"), LedgerUpdate(C.id, "todo", 2)])
    ledger.plan([D, C, B])
    assert states(ledger) == {B.id: ("failed", 2, "x"), C.id: ("todo", 2, None), D.id: ("todo", 0, None)}
    assert todo(ledger) == [D, C]
    assert not ledger.knows(A.id) and ledger.knows(B.id)


def test_an_image_that_was_renamed_is_looked_for_under_its_new_name(ledger):
    ledger.plan([task("a", "old.png")])
    ledger.plan([task("a", "new.png")])
    assert [each.image for each in todo(ledger)] == ["new.png"]


def test_a_plan_that_fails_on_the_way_changes_nothing(ledger):
    ledger.plan([A, B])

    def failing():
        yield C
        raise BatchError("no")

    with pytest.raises(BatchError):
        ledger.plan(failing())
    assert todo(ledger) == [A, B]
    ledger.plan([C])
    assert todo(ledger) == [C]


def test_the_run_folder_decides_what_is_done_failed_and_quarantined(ledger):
    """Every state before, and everything that a folder may show."""
    shown = {
        "nothing": RunDirScan(),
        "done": RunDirScan(done={A.id}),
        "failed": RunDirScan(failed={A.id: {"code": "image.missing"}}),
        "quarantined": RunDirScan(failed={A.id: {"code": "batch.killed", "quarantined": True}}),
        "both": RunDirScan(done={A.id}, failed={A.id: {"code": "x"}}),
    }
    becomes = {"nothing": "todo", "both": "done"}
    for name, found in shown.items():
        for before in STATES:
            ledger.plan([A])
            ledger.record([LedgerUpdate(A.id, before, 2, "old" if before in ("failed", "quarantined") else None)])
            ledger.apply_scan(found)
            state, attempts, code = states(ledger)[A.id]
            assert state == becomes.get(name, name), (name, before)
            assert code == {"failed": "image.missing", "quarantined": "batch.killed"}.get(state)
            forgiven = name == "nothing" and before == "quarantined"
            assert attempts == (0 if forgiven else 2), (name, before)
            once = states(ledger)
            ledger.apply_scan(found)
            assert states(ledger) == once


def test_what_is_not_planned_stays_unknown(ledger):
    ledger.plan([A])
    ledger.apply_scan(RunDirScan(done={B.id, A.id}, failed={C.id: {"code": "x"}}, orphans={D.id}))
    assert ledger.counts()["done"] == sum(ledger.counts().values()) == 1


def test_a_failure_without_a_code_is_still_one(ledger):
    ledger.plan([A])
    ledger.apply_scan(RunDirScan(failed={A.id: {}}))
    assert [state for state, *_ in ledger.codes()] == ["failed"]


def test_retried_tasks_have_all_their_attempts(ledger):
    ledger.plan([A, B, C])
    ledger.record(
        [LedgerUpdate(A.id, "quarantined", 3, "x"), LedgerUpdate(B.id, "failed", 1, "y"), LedgerUpdate(C.id, "done", 1)]
    )
    assert {each: (state, code) for each, state, code in ledger.failed()} == {
        A.id: ("quarantined", "x"),
        B.id: ("failed", "y"),
    }
    ledger.retry([A.id])
    assert ledger.todo(-1, 9) == [(0, A, 0)]
    assert ledger.counts()["failed"] == ledger.counts()["done"] == 1 and list(ledger.done()) == [C.id]


def test_reasons_are_counted_the_most_frequent_first(ledger):
    ledger.plan([A, B, C, D])
    ledger.record(
        [
            LedgerUpdate(A.id, "failed", 1, "rare"),
            LedgerUpdate(B.id, "failed", 1, "often"),
            LedgerUpdate(C.id, "failed", 1, "often"),
            LedgerUpdate(D.id, "quarantined", 3, "often"),
        ]
    )
    found = ledger.codes()
    assert [(state, code, count) for state, code, count, _ in found] == [
        ("failed", "often", 2),
        ("quarantined", "often", 1),
        ("failed", "rare", 1),
    ]
    assert found[0][3] in (B.id, C.id)


def test_changes_are_all_written_or_none(ledger):
    ledger.plan([A, B])
    with pytest.raises(sqlite3.Error):
        ledger.record([LedgerUpdate(A.id, "done", 1), LedgerUpdate(B.id, None, 1)])  # type: ignore[arg-type]
    assert ledger.counts()["todo"] == 2
    ledger.record([LedgerUpdate(A.id, "done", 1)])
    assert ledger.counts()["done"] == 1


def test_everything_is_there_after_the_file_is_opened_again(tmp_path):
    first = Ledger(tmp_path / "sub" / "ledger.sqlite")
    first.plan([A, B])
    first.record([LedgerUpdate(A.id, "failed", 2, "x")])
    first.remember_images([("/a.png", 3, 4, "sum")])
    first.close()
    second = Ledger(tmp_path / "sub" / "ledger.sqlite")
    assert states(second)[A.id] == ("failed", 2, "x") and todo(second) == [B]
    assert second.known_images(["/b.png", "/a.png"]) == {"/a.png": (3, 4, "sum")} and second.known_images([]) == {}
    second.remember_images([("/a.png", 5, 6, "other")])
    assert second.known_images(["/a.png"]) == {"/a.png": (5, 6, "other")}
    many = [(f"/{number}.png", number, 1, "x") for number in range(2500)]
    second.remember_images(many)
    assert second.known_images([path for path, *_ in many]) == {path: tuple(rest) for path, *rest in many}
    second.close()


def test_a_copy_is_a_ledger_and_one_file(ledger, tmp_path):
    ledger.plan([A, B])
    for _ in range(2):
        ledger.copy_to(tmp_path / "run" / "copy.sqlite")
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["copy.sqlite"]
    copy = Ledger(tmp_path / "run" / "copy.sqlite")
    assert todo(copy) == [A, B]
    copy.close()


def refused(path: Path, *facts: object) -> None:
    before = path.read_bytes() if path.is_file() else None
    with raises(BatchError, "batch.ledger", path, *facts):
        Ledger(path)
    assert before is None or path.read_bytes() == before, "what is another's was changed"


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "ledger.sqlite"
    for content in (b"x", b"not a database" * 1000, b"SQLite format 3\0" + b"\0" * 5000):
        path.write_bytes(content)
        refused(path)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder")
    refused(path / "ledger.sqlite")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("table", ["other (x)", "tasks (x)", "tasks (id, place, state, attempts, code, task)"])
def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path, version, table):
    path = tmp_path / "history.sqlite"
    other = sqlite3.connect(path)
    other.executescript(f"CREATE TABLE {table}; PRAGMA user_version = {version};")
    other.close()
    refused(path)


def test_a_ledger_of_another_version_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version = 98765")
    later.close()
    refused(path, 98765)


def test_a_damaged_ledger_is_refused_with_the_way_out(tmp_path):
    """Blocks of zeros anywhere: either it is refused when it is opened, or plan and run folder mend it."""
    path = tmp_path / "ledger.sqlite"
    tasks = [task(str(number)) for number in range(400)]
    first = Ledger(path)
    first.plan(tasks)
    first.close()
    whole, refusals = path.read_bytes(), 0
    for start in range(0, len(whole), len(whole) // 20):
        path.write_bytes(whole[:start] + bytes(2000) + whole[start + 2000 :])
        try:
            opened = Ledger(path)
        except BatchError as error:
            refusals += 1
            check_error(error, "batch.ledger", path)
            continue
        opened.plan(tasks)
        opened.apply_scan(RunDirScan())
        assert todo(opened) == tasks
        opened.close()
    assert refusals > 10
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
