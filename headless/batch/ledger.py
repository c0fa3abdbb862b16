"""The driver's account of a batch: one SQLite file, one writer. Lost, it is built again from the run folder."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...svd_core.errors import BatchError
from ...svd_core.utils.output_files import replacing
from .folder import RunDirScan
from .tasks import Task, read_task

State = Literal["todo", "running", "done", "failed", "quarantined"]
STATES: tuple[State, ...] = ("todo", "running", "done", "failed", "quarantined")

_MARK = 0x53564442
"""SQLite's application_id of our files: "SVDB"."""
_VERSION = 1
_PARAMETERS = 900
"""Values of one question: SQLite took 999 once."""
_TABLES = f"""
BEGIN;
PRAGMA application_id = {_MARK};
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY, place INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'todo',
    attempts INTEGER NOT NULL DEFAULT 0, code TEXT, task TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON tasks (state, place);
CREATE TABLE IF NOT EXISTS images (
    path TEXT PRIMARY KEY, bytes INTEGER NOT NULL, changed INTEGER NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
COMMIT;
"""


@dataclass(frozen=True)
class LedgerUpdate:
    """What became of a task."""

    id: str
    state: State
    attempts: int
    code: str | None = None


class Ledger:
    """Tasks with their states, and hashes of images. Attempts are deaths of workers: a driver's own are none.

    Raises BatchError when the file is no ledger; sqlite3.Error, as when the disk is full.
    """

    def __init__(self, path: Path | None):
        """Open the file, or make it; None: in memory."""
        self.path = path
        with _no_ledger(path), contextlib.ExitStack() as opened:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                _check_head(path)
            self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
            opened.callback(self._db.close)
            self._db.execute("PRAGMA trusted_schema=OFF")  # what a stranger's tables compute calls nothing of ours
            if not _is_ledger(self._db):
                self._db.executescript(_TABLES)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")  # the outputs are the truth: the last moment may be lost
            opened.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def plan(self, tasks: Iterable[Task]) -> None:
        """Have these tasks, in this order, and no others. Those that were there keep their state and attempts."""
        with self._transaction() as db:
            db.execute("CREATE TEMP TABLE planned (id TEXT PRIMARY KEY, place INTEGER, task TEXT) WITHOUT ROWID")
            db.executemany(
                "INSERT OR IGNORE INTO planned VALUES (?, ?, ?)",
                ((task.id, place, json.dumps(task.as_dict())) for place, task in enumerate(tasks)),
            )
            db.execute("DELETE FROM tasks WHERE id NOT IN (SELECT id FROM planned)")
            db.execute(
                "INSERT INTO tasks (id, place, task) SELECT id, place, task FROM planned WHERE true ON CONFLICT (id) "
                "DO UPDATE SET place = excluded.place, task = excluded.task "
                "WHERE place != excluded.place OR task != excluded.task"
            )
            db.execute("DROP TABLE planned")

    def reconcile(self, found: RunDirScan) -> None:
        """Have the states that the run folder shows. What was running when a driver ended is to do again."""
        with self._transaction() as db:
            db.execute("CREATE TEMP TABLE found (id TEXT PRIMARY KEY, state TEXT, code TEXT) WITHOUT ROWID")
            db.executemany(
                "INSERT OR REPLACE INTO found VALUES (?, ?, ?)",
                (
                    (each, "quarantined" if failure.get("quarantined") else "failed", str(failure.get("code")))
                    for each, failure in found.failed.items()
                ),
            )
            db.executemany("INSERT OR REPLACE INTO found VALUES (?, 'done', NULL)", ((each,) for each in found.done))
            db.execute(
                "UPDATE tasks SET state = 'todo', code = NULL, "
                "attempts = CASE WHEN state = 'quarantined' THEN 0 ELSE attempts END "
                "WHERE state != 'todo' AND id NOT IN (SELECT id FROM found)"
            )
            db.execute(
                "UPDATE tasks SET state = found.state, code = found.code FROM found "
                "WHERE tasks.id = found.id AND (tasks.state != found.state OR tasks.code IS NOT found.code)"
            )
            db.execute("DROP TABLE found")

    def todo(self, after: int, count: int) -> list[tuple[int, Task, int]]:
        """The next tasks to do behind a place in the plan: (place, task, attempts)."""
        rows = self._db.execute(
            "SELECT place, task, attempts FROM tasks WHERE state = 'todo' AND place > ? ORDER BY place LIMIT ?",
            (after, count),
        )
        try:
            return [(place, read_task(json.loads(task)), attempts) for place, task, attempts in rows]
        except (ValueError, RecursionError) as error:
            raise sqlite3.DatabaseError(str(error)) from error

    def record(self, changes: Sequence[LedgerUpdate]) -> None:
        """Write what became of tasks, all or nothing."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE tasks SET state = ?, attempts = ?, code = ? WHERE id = ?",
                [(each.state, each.attempts, each.code, each.id) for each in changes],
            )

    def knows(self, task_id: str) -> bool:
        """Whether the plan has such a task."""
        return self._db.execute("SELECT 1 FROM tasks WHERE id = ?", (task_id,)).fetchone() is not None

    def counts(self) -> dict[State, int]:
        """How many tasks are in each state."""
        found = dict(self._db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def codes(self) -> list[tuple[State, str, int, str]]:
        """Why tasks failed: (state, code, how many, the id of one of them), the most frequent first."""
        return list(
            self._db.execute(
                "SELECT state, coalesce(code, ''), count(*), min(id) FROM tasks WHERE state IN ('failed', "
                "'quarantined') GROUP BY state, code ORDER BY count(*) DESC, code"
            )
        )

    def retry(self, task_ids: Iterable[str]) -> None:
        """Have tasks done again, with all their attempts."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE tasks SET state = 'todo', attempts = 0, code = NULL WHERE id = ?",
                ((each,) for each in task_ids),
            )

    def done(self) -> Iterator[str]:
        """The ids of tasks that are done."""
        return (task_id for (task_id,) in self._db.execute("SELECT id FROM tasks WHERE state = 'done'"))

    def failed(self) -> Iterator[tuple[str, str, str]]:
        """(id, state, code) of each task that failed or was quarantined."""
        return self._db.execute(
            "SELECT id, state, coalesce(code, '') FROM tasks WHERE state IN ('failed', 'quarantined')"
        )

    def known_images(self, paths: Sequence[str]) -> dict[str, tuple[int, int, str]]:
        """Path -> (bytes, time of change in ns, sha256) of files as they were when they were hashed."""
        found = {}
        for start in range(0, len(paths), _PARAMETERS):
            some = paths[start : start + _PARAMETERS]
            marks = ",".join("?" * len(some))
            asked = f"SELECT path, bytes, changed, sha256 FROM images WHERE path IN ({marks})"  # noqa: S608 question marks
            rows = self._db.execute(asked, some)
            found.update((path, (size, changed, sha256)) for path, size, changed, sha256 in rows)
        return found

    def remember_images(self, found: Sequence[tuple[str, int, int, str]]) -> None:
        """Keep (path, bytes, time, sha256) of files that were hashed."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", found)

    def copy_to(self, path: Path) -> None:
        """A copy of the file, as of now; the one before stays until this one is complete."""
        with replacing(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as copy:
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """All or nothing; inside another one, a part of that."""
        return contextlib.nullcontext(self._db) if self._db.in_transaction else _Transaction(self._db)


@contextlib.contextmanager
def _no_ledger(path: Path | None) -> Iterator[None]:
    """What keeps a file from being a ledger, as a BatchError with the way out."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise BatchError(
            f"the ledger {path} cannot be used: {error}. Delete it: it is built again from the run folder.",
            code="batch.ledger",
        ) from error
    except OSError as error:
        raise BatchError(
            f"the ledger {path} cannot be made: {error.strerror}. Name a file in a folder on this machine's disk.",
            code="batch.ledger",
        ) from error


def _check_head(path: Path) -> None:
    """SQLite takes a short text for an empty database, and would write over it."""
    head = path.read_bytes()[:16] if path.is_file() and path.stat().st_size < 512 else b""
    if head:
        raise sqlite3.DatabaseError("it is not a database")


def _is_ledger(db: sqlite3.Connection) -> bool:
    """Whether these are our tables; False for a new file. Raises sqlite3.DatabaseError for anything else."""
    mark, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if mark != _MARK:
        if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            return False
        raise sqlite3.DatabaseError("it is the database of another program")
    made = set(db.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex%'"))
    if not made <= {("table", "tasks"), ("table", "images"), ("index", "by_state")}:
        raise sqlite3.DatabaseError("it holds more than a ledger does")
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"it was written by another version of SVD Stages ({version})")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise sqlite3.DatabaseError(f"it is damaged ({fault})")
    return True


class _Transaction:
    """All or nothing."""

    def __init__(self, db: sqlite3.Connection):
        self._db = db

    def __enter__(self) -> sqlite3.Connection:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
                return
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
