"""One driver for a run, or one for each shard of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...svd_core.errors import BatchError

logger = logging.getLogger(__name__)

_LOOKED_AT = 1.0
"""Seconds in which `active_drivers` has surely let go of a lock again."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every task belongs to one of them, whatever the order of rows."""

    index: int = 1
    count: int = 1

    def has(self, task_id: str) -> bool:
        """Whether a task belongs to it."""
        return self.count == 1 or int(task_id[:15], 16) % self.count == self.index - 1

    @property
    def name(self) -> str:
        """For names of files: "2-of-8", and "" for a whole run."""
        return "" if self.count == 1 else f"{self.index}-of-{self.count}"


def parse_shard(text: str) -> Shard:
    """A shard as a person writes it: 2/8. Raises BatchError."""
    index, slash, count = text.partition("/")
    numbers = [int(each) for each in (index, count) if each.isascii() and each.isdigit() and len(each) < 10]
    if not slash or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise BatchError(f'a shard is i/N with i from 1 to N, as in 2/8, and not "{text[:40]}".', code="batch.shard")
    return Shard(*numbers)


@contextlib.contextmanager
def run_lock(run: Path, shard: Shard) -> Iterator[None]:
    """Inside the `with`, no other driver works on this shard of a run, and none on shards of another division.

    Raises BatchError (`batch.another_driver`) when one does. A driver that was killed holds nothing. Where two
    machines see the folder through a network disk that knows no locks, clips are still made whole and kept once.
    """
    from filelock import FileLock, Timeout

    folder = run / "drivers"
    folder.mkdir(parents=True, exist_ok=True)
    own = f"{shard.index}-of-{shard.count}"
    lock = FileLock(folder / f"{own}.lock")
    try:
        lock.acquire(timeout=_LOOKED_AT)
    except Timeout as error:
        raise _another(run, folder / f"{own}.json") from error
    except NotImplementedError:  # what filelock raises for a disk that knows no locks
        logger.warning("%s is on a disk without locks; see to it that no other driver works on this run", run)
        yield
        return
    try:
        for other in sorted(folder.glob("*-of-*.lock")):
            if other.stem.rpartition("-of-")[2] != str(shard.count):
                try:
                    with FileLock(other, timeout=0):
                        pass
                except Timeout as error:
                    raise _another(run, other.with_suffix(".json")) from error
        about = folder / f"{own}.json"
        about.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        try:
            yield
        finally:
            about.unlink(missing_ok=True)
    finally:
        lock.release()


@contextlib.contextmanager
def planning(run: Path) -> Iterator[None]:
    """Inside the `with`, no other shard plans this run; waits for the one that does."""
    from filelock import FileLock

    lock = FileLock(run / "drivers" / "plan.lock")
    with contextlib.suppress(NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def active_drivers(run: Path) -> list[str]:
    """Who works on a run now: "process 12 on host", with its shard."""
    from filelock import FileLock, Timeout

    found = []
    for lock in sorted((run / "drivers").glob("*-of-*.lock")):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            part = "" if lock.stem == "1-of-1" else f", shard {lock.stem.replace('-of-', '/')}"
            found.append(f"{_who(lock.with_suffix('.json'))}{part}")
        except (NotImplementedError, OSError):  # nobody knows
            continue
    return found


@contextlib.contextmanager
def ledger_lock(ledger: Path) -> Iterator[None]:
    """Inside the `with`, no other driver uses this ledger, be it of another run or another shard.

    Raises BatchError (`batch.another_driver`) at once when one does: each would forget the other's tasks.
    """
    from filelock import FileLock, Timeout

    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BatchError(
            f"the ledger {ledger} cannot be made: {error.strerror}. Name another place (--ledger FILE).",
            code="batch.ledger",
        ) from error
    lock = FileLock(ledger.with_name(f"{ledger.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise BatchError(
            f"another driver uses the ledger {ledger}; give each run, and each shard, one of its own.",
            code="batch.another_driver",
        ) from error
    except NotImplementedError:
        logger.warning("%s is on a disk without locks, on which a ledger is not safe; see --ledger", ledger)
    try:
        yield
    finally:
        lock.release()


def _who(about: Path) -> str:
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a process"


def _another(run: Path, about: Path) -> BatchError:
    return BatchError(
        f"another driver ({_who(about)}) works on {run}; wait for it, or stop it. `svd-stages batch status --run "
        f"{run}` shows how far it is.",
        code="batch.another_driver",
    )
