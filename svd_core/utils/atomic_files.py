"""Files and folders that are being made, under names of their own, and what killed writers left of such.

Who makes one holds a lock on it, which ends with the process however that ends: what nobody holds is removed by the
next writer in the same folder. Locks are believed on the machine that took them; on others only age tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = ".svd-stages-"
SUFFIX = ".part"
_ABANDONED_AFTER = 24 * 3600
"""Seconds since the last write after which the writer on another machine, or one without locks, was surely killed."""


@contextlib.contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """A new empty file in `folder`, which is made when it is not there. Its name is gone afterwards, moved or not.

    What killed writers left in the folder is removed before. Raises OSError.
    """
    path, lock = _made(folder, lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        _release(lock)


@contextlib.contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """The same for a folder in `folder`, with all that is in it; only this user sees into it."""
    path, lock = _made(folder, lambda path: os.mkdir(path, 0o700))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _release(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left in `folder`; what cannot be removed stays."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                _remove_if_abandoned(path, status)


def _made(folder: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """A path in `folder` that `make` made and this process holds."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    while True:
        machine = _machine() if sys.platform != "win32" else ""
        path = folder / f"{PREFIX}{machine}{secrets.token_hex(8)}{SUFFIX}"
        make(path)
        with contextlib.suppress(FileNotFoundError):  # removed by another before it was held: once more
            return path, _hold(path)


def _hold(path: Path) -> int | None:
    """Lock `path` until its descriptor is closed; None on systems without such locks.

    Raises FileNotFoundError when it was removed meanwhile. Where a disk has no locks nothing is held, and others find
    none either.
    """
    if sys.platform == "win32":  # where an open file could not be moved to its place
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path)):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _remove_if_abandoned(path: Path, status: os.stat_result) -> None:
    """Raises OSError when it cannot be removed."""
    remove = shutil.rmtree if stat.S_ISDIR(status.st_mode) else os.unlink
    if sys.platform != "win32" and path.name.startswith(PREFIX + _machine()):
        # some network disks want a descriptor to write with for such a lock
        descriptor = os.open(path, (os.O_RDONLY if stat.S_ISDIR(status.st_mode) else os.O_RDWR) | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)  # while it is held, so that a writer who made it just now finds it gone
            return
        except BlockingIOError:
            return
        except OSError:
            pass  # the disk has no locks
        finally:
            os.close(descriptor)
    if time.time() - status.st_mtime > _ABANDONED_AFTER:
        remove(path)


@lru_cache(maxsize=1)
def _machine() -> str:
    """A short word for the machine since it was started: containers on it are the same, as their locks are."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        identity = socket.gethostname()
    return hashlib.sha256(identity.encode()).hexdigest()[:8] + "-"
