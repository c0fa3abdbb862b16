"""The driver's index of a batch: one SQLite file with one writer. It can be rebuilt from the run folder."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...svd_core.errors import BatchError, quoted
from ...svd_core.utils.output_files import replacing
from .folder import RunDirScan, RunFolder
from .tasks import Task, read_task

logger = logging.getLogger(__name__)

State = Literal["todo", "running", "done", "failed", "quarantined"]
STATES: tuple[State, ...] = ("todo", "running", "done", "failed", "quarantined")

_MARK = 0x53564442
"""SQLite's application_id of a ledger: "SVDB"."""
_VERSION = 1
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
    """The new state of a task."""

    id: str
    state: State
    attempts: int
    code: str | None = None


class Ledger:
    """The tasks of a batch with their states, and the hashes of images.

    An attempt is the death of a worker; the death of a driver does not count. Methods raise sqlite3.Error, as when the
    disk is full.
    """

    def __init__(self, path: Path | None):
        """Open or create the file. None: in memory. Raises BatchError if the file is not a ledger."""
        self.path = path
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError as error:
            message = (
                f"the ledger {quoted(path)} cannot be used: {error}. Delete it. It is rebuilt from the run folder."
            )
            raise BatchError(message, code="batch.ledger") from error
        except OSError as error:
            message = f"the ledger {quoted(path)} cannot be created: {error.strerror}. Give a path on a local disk."
            raise BatchError(message, code="batch.ledger") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def plan(self, tasks: Iterable[Task]) -> None:
        """Set the tasks and their order. Tasks that are there already keep their state and attempts."""
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

    def apply_scan(self, scan: RunDirScan) -> None:
        """Set the states that the run folder shows.

        A task that was running when a driver ended becomes todo. If the failure of a task was deleted, it becomes todo
        with 0 attempts used.
        """
        found: dict[str, tuple[State, str | None]] = {}
        for task_id, failure in scan.failed.items():
            found[task_id] = "quarantined" if failure.get("quarantined") else "failed", str(failure.get("code"))
        found.update(dict.fromkeys(scan.done, ("done", None)))
        changes = []
        for task_id, before, code, attempts in self._db.execute("SELECT id, state, code, attempts FROM tasks"):
            state, new_code = found.get(task_id, ("todo", None))
            if (state, new_code) != (before, code):
                is_reset = state == "todo" and before in ("failed", "quarantined")
                changes.append(LedgerUpdate(task_id, state, 0 if is_reset else attempts, new_code))
        self.record(changes)

    def todo(self, after: int, count: int) -> list[tuple[int, Task, int]]:
        """Return up to `count` tasks to do after a place in the plan, as (place, task, attempts)."""
        rows = self._db.execute(
            "SELECT place, task, attempts FROM tasks WHERE state = 'todo' AND place > ? ORDER BY place LIMIT ?",
            (after, count),
        )
        try:
            return [(place, read_task(json.loads(task)), attempts) for place, task, attempts in rows]
        except (ValueError, RecursionError) as error:
            raise sqlite3.DatabaseError(str(error)) from error

    def record(self, changes: Sequence[LedgerUpdate]) -> None:
        """Write new states of tasks, all or none."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE tasks SET state = ?, attempts = ?, code = ? WHERE id = ?",
                [(change.state, change.attempts, change.code, change.id) for change in changes],
            )

    def has(self, task_id: str) -> bool:
        """Return True if the plan has a task with this id."""
        return self._db.execute("SELECT 1 FROM tasks WHERE id = ?", (task_id,)).fetchone() is not None

    def counts(self) -> dict[State, int]:
        """Return the number of tasks in each state."""
        counts = dict(self._db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
        return {state: counts.get(state, 0) for state in STATES}

    def codes(self) -> list[tuple[State, str, int, str]]:
        """Return why tasks failed as (state, code, number of tasks, id of one of them), the most frequent first."""
        return list(
            self._db.execute(
                "SELECT state, coalesce(code, ''), count(*), min(id) FROM tasks WHERE state IN ('failed', "
                "'quarantined') GROUP BY state, code ORDER BY count(*) DESC, code"
            )
        )

    def done(self) -> Iterator[str]:
        """Yield the ids of the tasks that are done."""
        return (task_id for (task_id,) in self._db.execute("SELECT id FROM tasks WHERE state = 'done'"))

    def failed(self) -> Iterator[tuple[str, str]]:
        """Yield (id, code) of each task that failed or was quarantined."""
        return self._db.execute("SELECT id, coalesce(code, '') FROM tasks WHERE state IN ('failed', 'quarantined')")

    def known_images(self, paths: Sequence[str]) -> dict[str, tuple[int, int, str]]:
        """Return path -> (bytes, time of change in ns, sha256) of the images that were hashed before."""
        rows = self._db.execute(
            "SELECT path, bytes, changed, sha256 FROM images WHERE path IN (SELECT value FROM json_each(?))",
            (json.dumps(paths),),
        )
        return {path: (size, changed, sha256) for path, size, changed, sha256 in rows}

    def remember_images(self, hashed: Sequence[tuple[str, int, int, str]]) -> None:
        """Keep (path, bytes, time of change in ns, sha256) of images."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", hashed)

    def copy_to(self, path: Path) -> None:
        """Copy the ledger to a file, which is replaced when the copy is complete."""
        with replacing(path) as temporary, contextlib.closing(sqlite3.connect(temporary)) as copy:
            self._db.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # a single file without -wal and -shm

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all changes of the `with`, or none. Inside another transaction, they become part of it."""
        if self._db.in_transaction:
            yield self._db
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def reconcile(folder: RunFolder, ledger: Ledger) -> None:
    """Delete leftovers of killed writers, and take the states of tasks from the files.

    A video without its record is deleted: its writer was killed between the two, and the render is usually still in
    the machine's spool. A record without its video is deleted, too. Both tasks are rendered again.
    """
    folder.sweep()
    scan = folder.scan()
    for task_id in filter(ledger.has, scan.orphans | scan.strays):  # another shard may be about to write its record
        if folder.is_done(task_id):  # it was completed meanwhile
            scan.done.add(task_id)
            continue
        logger.warning("%s is incomplete. It is rendered again", task_id[:12])
        folder.forget_unfinished(task_id)
    ledger.apply_scan(scan)


def _open(path: Path | None) -> sqlite3.Connection:
    """Open or create a ledger. Raises sqlite3.DatabaseError, OSError."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_head(path)
    db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
    try:
        db.execute("PRAGMA trusted_schema=OFF")  # expressions in an untrusted file must not call functions
        if not _is_ledger(db):
            db.executescript(_TABLES)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")  # the last changes may be lost: the run folder has them
    except BaseException:
        db.close()
        raise
    return db


def _check_head(path: Path) -> None:
    """Raise sqlite3.DatabaseError for a short file: SQLite would take it for an empty database and overwrite it."""
    head = path.read_bytes()[:16] if path.is_file() and path.stat().st_size < 512 else b""
    if head:
        raise sqlite3.DatabaseError("it is not a database")


def _is_ledger(db: sqlite3.Connection) -> bool:
    """Return True for a ledger, False for a new file. Raises sqlite3.DatabaseError for anything else."""
    mark, version = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if mark != _MARK:
        if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            return False
        raise sqlite3.DatabaseError("it is the database of another program")
    tables = set(db.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex%'"))
    if not tables <= {("table", "tasks"), ("table", "images"), ("index", "by_state")}:
        raise sqlite3.DatabaseError("it has other tables than a ledger")
    if version != _VERSION:
        raise sqlite3.DatabaseError(f"its format is version {version} and not {_VERSION}")
    (fault,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if fault != "ok":
        raise sqlite3.DatabaseError(f"it is damaged ({fault})")
    return True
