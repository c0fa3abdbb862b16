"""Allow one driver per run, or one per shard of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...svd_core.errors import BatchError, for_shell, quoted

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT = 1.0
"""Seconds. `active_drivers` holds a lock for a moment only."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`. Each task belongs to one part, whatever the order of rows."""

    index: int = 1
    count: int = 1

    def has(self, task_id: str) -> bool:
        """Return True if a task belongs to this part."""
        return self.count == 1 or int(task_id[:15], 16) % self.count == self.index - 1

    @property
    def name(self) -> str:
        """Part of file names: "2-of-8", and "" for all of a run."""
        return "" if self.count == 1 else f"{self.index}-of-{self.count}"


def parse_shard(text: str) -> Shard:
    """Parse a shard such as 2/8. Raises BatchError."""
    index, slash, count = text.partition("/")
    numbers = [int(each) for each in (index, count) if each.isascii() and each.isdigit() and len(each) < 10]
    if not slash or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise BatchError(f'`shard` must be i/N with i from 1 to N, as in 2/8, got "{text[:40]}".', code="batch.shard")
    return Shard(*numbers)


@contextlib.contextmanager
def run_lock(run: Path, shard: Shard) -> Iterator[None]:
    """Lock a shard of a run, against other drivers of this shard and against shards of another division.

    The lock ends with the process. On a network disk without locks, two machines may drive one run; each video is
    still written completely and kept once.

    Raises:
        BatchError: Another driver has it (code `batch.another_driver`).
    """
    folder = run / "drivers"
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / f"{shard.index}-of-{shard.count}.lock"
    with _locked(own, _LOCK_TIMEOUT, lambda: _another_driver(run, own)):
        for other in folder.glob("*-of-*.lock"):
            if other.stem.rpartition("-of-")[2] != str(shard.count) and _is_locked(other):
                raise _another_driver(run, other)
        about = own.with_suffix(".json")
        about.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        try:
            yield
        finally:
            about.unlink(missing_ok=True)


def planning_lock(run: Path) -> contextlib.AbstractContextManager[None]:
    """Wait until no other shard plans this run, and lock planning."""
    return _locked(run / "drivers" / "plan.lock", -1)


def ledger_lock(ledger: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a ledger against drivers of other runs and shards: each would delete the other's tasks.

    Raises:
        BatchError: Another driver has it (code `batch.another_driver`), or its folder cannot be created.
    """
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"the ledger {quoted(ledger)} cannot be created: {error.strerror}. Give another path as `ledger`."
        raise BatchError(message, code="batch.ledger") from error
    message = f"another driver uses the ledger {quoted(ledger)}. Give each run, and each shard, its own."
    taken = BatchError(message, code="batch.another_driver")
    return _locked(ledger.with_name(f"{ledger.name}.lock"), 0, lambda: taken)


def active_drivers(run: Path) -> list[str]:
    """Return the drivers that work on a run now: "process 12 on host", with the shard."""
    drivers = []
    for lock in sorted((run / "drivers").glob("*-of-*.lock")):
        if _is_locked(lock):
            part = "" if lock.stem == "1-of-1" else f", shard {lock.stem.replace('-of-', '/')}"
            drivers.append(f"{_describe_driver(lock)}{part}")
    return drivers


@contextlib.contextmanager
def _locked(path: Path, timeout: float, taken: Callable[[], BatchError] | None = None) -> Iterator[None]:
    """Hold a lock. Raise the error `taken()` if another process holds it for `timeout` seconds (-1: wait forever)."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        assert taken is not None
        raise taken() from error
    except NotImplementedError:  # raised by filelock for a disk without locks
        logger.warning("%s is on a disk without locks. Make sure that no other driver uses it", quoted(path))
    try:
        yield
    finally:
        lock.release()


def _is_locked(lock: Path) -> bool:
    """Return True if a lock is taken, also by this process. False if that cannot be determined."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return False


def _describe_driver(lock: Path) -> str:
    try:
        driver = json.loads(lock.with_suffix(".json").read_text(encoding="utf-8"))
        return f"process {driver['pid']} on {driver['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "a process"


def _another_driver(run: Path, lock: Path) -> BatchError:
    fix = f"Wait for it, or stop it. `svd-stages batch status --run {for_shell(run)}` shows its progress."
    message = f"another driver ({_describe_driver(lock)}) works on {quoted(run)}. {fix}"
    return BatchError(message, code="batch.another_driver")
