"""A temporary folder for this user on a machine that users share."""

from __future__ import annotations

import getpass
import os
import stat
import tempfile
from pathlib import Path


def temp_folder() -> Path:
    """Return the path of the folder, which contains the user's name. It may not exist."""
    return Path(tempfile.gettempdir()) / f"svd-stages-{_user_name()}"


def private_folder(*parts: str) -> Path:
    """Return `temp_folder() / parts`, created with access for this user only.

    Raises:
        OSError: It cannot be created, or belongs to another user, who could have put files there.
    """
    folder = temp_folder()
    for part in ("", *parts):
        folder = folder / part
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_own = not hasattr(os, "getuid") or status.st_uid == os.getuid()  # Windows has a folder for each user
        if not stat.S_ISDIR(status.st_mode) or not is_own:
            raise PermissionError(13, "it belongs to another user", str(folder))
        if status.st_mode & 0o077:  # it existed with wider access
            folder.chmod(0o700)
    return folder


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
