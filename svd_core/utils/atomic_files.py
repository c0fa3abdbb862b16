"""Temporary files and folders for atomic writes, and removal of those that killed processes left.

A writer holds a lock on its file. The system releases it when the process ends, so an unlocked file is abandoned. Locks
are only reliable on the machine that took them. Files of other machines are removed when they are old.
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
"""Seconds since the last write after which a file of another machine, or on a disk without locks, is abandoned."""


def unfinished_file(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """Create an empty file with a temporary name in `folder`, which is created if needed. Removed on exit unless moved.

    Abandoned files in the folder are removed first. Raises OSError.
    """
    return _unfinished(folder, lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)))


def unfinished_folder(folder: Path) -> contextlib.AbstractContextManager[Path]:
    """Create a folder with a temporary name in `folder`, accessible to this user only. Removed on exit.

    Abandoned files in the folder are removed first. Raises OSError.
    """
    return _unfinished(folder, lambda path: os.mkdir(path, 0o700))


@contextlib.contextmanager
def _unfinished(folder: Path, create: Callable[[Path], None]) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    machine = _machine_prefix() if sys.platform != "win32" else ""
    while True:
        path = folder / f"{PREFIX}{machine}{secrets.token_hex(8)}{SUFFIX}"
        create(path)
        with contextlib.suppress(FileNotFoundError):  # another process removed it before it was locked
            lock = _lock(path)
            break
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)  # does nothing to a file
        with contextlib.suppress(OSError):
            path.unlink()
        if lock is not None:
            os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Remove abandoned files and folders in `folder`. Errors are ignored."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                _remove_if_abandoned(path, status)


def _lock(path: Path) -> int | None:
    """Lock `path` until the returned descriptor is closed. None on Windows, where an open file could not be moved.

    On disks without locks the descriptor is returned all the same; other processes find no locks there either.

    Raises:
        FileNotFoundError: Another process removed the file meanwhile.
    """
    if sys.platform == "win32":
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


def _remove_if_abandoned(path: Path, status: os.stat_result) -> None:
    """Remove a file or folder without a writer. Raises OSError if that fails."""
    remove = shutil.rmtree if stat.S_ISDIR(status.st_mode) else os.unlink
    if sys.platform != "win32" and path.name.startswith(PREFIX + _machine_prefix()):
        # some network disks require a writable descriptor for an exclusive lock
        descriptor = os.open(path, (os.O_RDONLY if stat.S_ISDIR(status.st_mode) else os.O_RDWR) | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)  # while locked, so that a writer that created it just now finds it gone
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
def _machine_prefix() -> str:
    """Return an id of this boot of the machine. Containers on it share the id, as they share locks."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        identity = socket.gethostname()
    return hashlib.sha256(identity.encode()).hexdigest()[:8] + "-"
