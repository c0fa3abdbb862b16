"""A folder of ours among the system's temporary files, which other users of the machine share."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path


def temp_folder() -> Path:
    """Its path, by the user's name; it need not exist."""
    return Path(tempfile.gettempdir()) / f"svd-stages-{_user()}"


def private_folder(*parts: str) -> Path:
    """A folder below it that only this user may write to; made when it is not there.

    Raises OSError when it cannot be made, or is another user's: what lies in it would be believed.
    """
    folder = temp_folder()
    for part in ("", *parts):
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or _is_anothers(status):
            raise PermissionError(13, "it is another user's", str(folder))
        if status.st_mode & 0o077:  # made with a wider umask
            folder.chmod(0o700)
    return folder


def _is_anothers(status: os.stat_result) -> bool:
    """Whether it is not this user's. Windows has a temporary folder for each user."""
    return hasattr(os, "getuid") and status.st_uid != os.getuid()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
