"""Files that a stranger may name, or put in place: what a name can lead to, and opening plain files only.

A pipe would be waited for without end, and a device has none.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


class NotPlainError(OSError):
    """A folder, a pipe, a socket or a device lies where a file should."""


def open_plain(path: Path) -> FileIO:
    """The file, to read bytes from, unbuffered; links are followed.

    Raises NotPlainError, other OSErrors, and ValueError for what no file can be called.
    """
    _require_plain(path, os.stat(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    stream = FileIO(os.open(path, flags), "rb")  # without waiting, should a pipe have taken the file's place
    try:
        _require_plain(path, os.fstat(stream.fileno()))
    except BaseException:
        stream.close()
        raise
    return stream


def _require_plain(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise NotPlainError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotPlainError(errno.EINVAL, "it is a pipe, a socket or a device", str(path))


def can_be_a_name(text: str) -> bool:
    """Whether a file can be called so: no zero byte, no half of a letter."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def is_within(path: str, folder: str) -> bool:
    """Whether an absolute, normal path is `folder` or lies below it; links are not looked at."""
    try:
        return os.path.commonpath((folder, path)) == folder
    except ValueError:  # two drives of Windows
        return False
