"""Guards for paths that come from graphs and servers: a name must be valid and must not leave its folder."""

from __future__ import annotations

import os


def is_valid_file_name(text: str) -> bool:
    """Return True if the operating system accepts `text` as a path: encodable and without a null character."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def is_within(path: str, folder: str) -> bool:
    """Return True if a normalized absolute path is `folder` or below it. Links are not resolved."""
    try:
        return os.path.commonpath((folder, path)) == folder
    except ValueError:  # two drives of Windows
        return False


def resolve_inside(folder: str | os.PathLike, *parts: str) -> str | None:
    """Return the real path of `folder / parts`, or None if that lies outside of `folder`. Links are resolved."""
    root = os.path.realpath(folder)
    path = os.path.realpath(os.path.join(root, *parts))
    return path if is_within(path, root) else None
