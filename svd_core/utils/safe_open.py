"""Open regular files only. Reading a pipe could wait forever, and a device has no end."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path


class NotRegularFileError(OSError):
    """The path is a folder, a pipe, a socket or a device."""


def open_regular_file(path: Path) -> FileIO:
    """Open a file to read bytes, unbuffered. Links are followed.

    Raises:
        NotRegularFileError: `path` is something else than a file.
        OSError: It cannot be opened.
        ValueError: `path` is not a valid file name.
    """
    _check_regular(path, os.stat(path))
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    stream = FileIO(os.open(path, flags), "rb")  # O_NONBLOCK: a pipe may have replaced the file meanwhile
    try:
        _check_regular(path, os.fstat(stream.fileno()))
    except BaseException:
        stream.close()
        raise
    return stream


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise NotRegularFileError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFileError(errno.EINVAL, "it is a pipe, a socket or a device", str(path))
