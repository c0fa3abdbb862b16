"""The ledger: states over several plans and scans of the run folder, and files that are not a ledger."""

from __future__ import annotations

import contextlib
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


A, B, C, D, E = map(task, "abcde")


@pytest.fixture
def ledger(tmp_path):
    with contextlib.closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        yield ledger


def todo(ledger: Ledger) -> list[Task]:
    return [task for _, task, _ in ledger.todo(-1, 1000)]


def states(ledger: Ledger) -> dict[str, tuple]:
    rows = ledger._db.execute("SELECT id, state, attempts, code FROM tasks")
    return {each: tuple(rest) for each, *rest in rows}


def test_pages_of_tasks_to_do_have_the_order_of_the_plan_and_each_task_once(ledger):
    tasks = [task(str(number)) for number in range(57)]
    rng = random.Random(1)
    for _ in range(4):
        rng.shuffle(tasks)
        ledger.plan([*tasks, *tasks[:20]])
        assert ledger.counts() == {"todo": 57, "running": 0, "done": 0, "failed": 0, "quarantined": 0}
        paged, place = [], -1
        while page := ledger.todo(place, 5):
            place = page[-1][0]
            paged += [each for _, each, _ in page]
        assert paged == tasks


def test_a_new_plan_keeps_states_and_attempts_and_deletes_other_tasks(ledger):
    ledger.plan([A, B, C])
    ledger.record([LedgerUpdate(A.id, "done", 1), LedgerUpdate(B.id, "failed", 2, "x"), LedgerUpdate(C.id, "todo", 2)])
    renamed = task("c", "new.png")
    ledger.plan([D, renamed, B])
    assert states(ledger) == {B.id: ("failed", 2, "x"), C.id: ("todo", 2, None), D.id: ("todo", 0, None)}
    assert todo(ledger) == [D, renamed]
    assert not ledger.has(A.id) and ledger.has(B.id)


def test_a_plan_that_fails_changes_nothing(ledger):
    ledger.plan([A, B])

    def failing():
        yield C
        raise BatchError("no")

    with pytest.raises(BatchError):
        ledger.plan(failing())
    assert todo(ledger) == [A, B]
    ledger.plan([C])
    assert todo(ledger) == [C]


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize(
    ("scan", "after", "code"),
    [
        (RunDirScan(), "todo", None),
        (RunDirScan(done={A.id}), "done", None),
        (RunDirScan(failed={A.id: {"code": "image.missing"}}), "failed", "image.missing"),
        (RunDirScan(failed={A.id: {}}), "failed", "None"),
        (RunDirScan(failed={A.id: {"code": "batch.killed", "quarantined": True}}), "quarantined", "batch.killed"),
        (RunDirScan(done={A.id}, failed={A.id: {"code": "x"}}), "done", None),
    ],
)
def test_the_run_folder_determines_the_state(ledger, before, scan, after, code):
    ledger.plan([A])
    ledger.record([LedgerUpdate(A.id, before, 2, "old" if before in ("failed", "quarantined") else None)])
    is_reset = after == "todo" and before in ("failed", "quarantined")
    for _ in range(2):
        ledger.apply_scan(scan)
        assert states(ledger)[A.id] == (after, 0 if is_reset else 2, code)


def test_tasks_outside_the_plan_are_ignored(ledger):
    ledger.plan([A])
    ledger.apply_scan(RunDirScan(done={B.id, A.id}, failed={C.id: {"code": "x"}}, orphans={D.id}))
    assert ledger.counts()["done"] == sum(ledger.counts().values()) == 1


def test_failures_are_listed_and_counted_the_most_frequent_first(ledger):
    ledger.plan([A, B, C, D, E])
    codes = {A.id: "rare", B.id: "often", C.id: "often", D.id: "often"}
    failures = [LedgerUpdate(each, "quarantined" if each == D.id else "failed", 1, codes[each]) for each in codes]
    ledger.record([*failures, LedgerUpdate(E.id, "done", 1)])
    assert dict(ledger.failed()) == codes and list(ledger.done()) == [E.id]
    reasons = ledger.codes()
    expected = [("failed", "often", 2), ("quarantined", "often", 1), ("failed", "rare", 1)]
    assert [(state, code, count) for state, code, count, _ in reasons] == expected
    assert reasons[0][3] in (B.id, C.id)


def test_changes_are_all_written_or_none(ledger):
    ledger.plan([A, B])
    with pytest.raises(sqlite3.Error):
        ledger.record([LedgerUpdate(A.id, "done", 1), LedgerUpdate(B.id, None, 1)])  # type: ignore[arg-type]
    assert ledger.counts()["todo"] == 2
    ledger.record([LedgerUpdate(A.id, "done", 1)])
    assert ledger.counts()["done"] == 1


def test_a_reopened_ledger_has_everything(tmp_path):
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


def test_a_copy_is_a_ledger_in_one_file(ledger, tmp_path):
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
    assert before is None or path.read_bytes() == before, "a file that is not a ledger was changed"


def test_other_files_are_refused_and_not_changed(tmp_path):
    path = tmp_path / "ledger.sqlite"
    for content in (b"x", b"not a database" * 1000, b"SQLite format 3\0" + b"\0" * 5000):
        path.write_bytes(content)
        refused(path)
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder")
    refused(path / "ledger.sqlite")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("table", ["other (x)", "tasks (x)", "tasks (id, place, state, attempts, code, task)"])
def test_the_database_of_another_program_is_refused_and_not_changed(tmp_path, version, table):
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


def test_a_damaged_ledger_is_refused_or_repaired(tmp_path):
    """Blocks of zeros anywhere: opening it is refused, or plan and scan repair it."""
    path = tmp_path / "ledger.sqlite"
    tasks = [task(str(number)) for number in range(400)]
    first = Ledger(path)
    first.plan(tasks)
    first.close()
    content, refusals = path.read_bytes(), 0
    for start in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:start] + bytes(2000) + content[start + 2000 :])
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
    path.write_bytes(content[: len(content) // 2])
    refused(path)
