"""The images of a batch: inside one folder, known by the sha256 of their bytes, hashed once."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ...svd_core.errors import ImageError
from ...svd_core.media.hashing import file_sha256

READERS = 8
"""Threads that hash: the disk is waited for, and hashing lets others run."""
_AT_ONCE = 64
"""Files that a thread takes at a time."""
_QUICK = 0.0002
"""Seconds for a file below which threads would only wait for each other."""


@dataclass(frozen=True)
class Image:
    """A picture file that was looked at: its path below the folder of images with forward slashes, and its sha256."""

    name: str
    sha256: str


class Memory(Protocol):
    """What was hashed before. See `ledger.Ledger`."""

    def known_images(self, paths: Sequence[str]) -> dict[str, tuple[int, int, str]]:
        """Path -> (bytes, time of change in ns, sha256), of those that are known."""
        ...

    def remember_images(self, found: Sequence[tuple[str, int, int, str]]) -> None:
        """Keep (path, bytes, time, sha256)."""
        ...


@dataclass
class ImageFolder:
    """Everything that rows may name as an image lies in here, links followed.

    root    the folder
    base    where relative paths begin; inside or above the root
    memory  hashes of earlier plans, taken for a file whose size and time are what they were
    """

    root: Path
    base: Path
    memory: Memory
    _real_folders: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._real_base = os.path.realpath(self.base)

    def look(self, paths: Sequence[str]) -> dict[str, Image | ImageError]:
        """What each path, as a manifest has it, means. Files are hashed side by side."""
        found: dict[str, Image | ImageError] = {}
        located: list[tuple[str, str, str, os.stat_result]] = []
        for path in dict.fromkeys(paths):
            try:
                located.append((path, *self._locate(path)))
            except ImageError as error:
                found[path] = error
        known = self.memory.known_images([real for _, _, real, _ in located])
        to_hash = []
        for path, name, real, status in located:
            size, changed, sha256 = known.get(real, (None, None, ""))
            if (size, changed) == (status.st_size, status.st_mtime_ns):
                found[path] = Image(name, sha256)
            else:
                to_hash.append((path, name, real, status))
        hashed = list(_hash_all([real for _, _, real, _ in to_hash]))
        remembered = []
        for (path, name, real, status), sha256 in zip(to_hash, hashed, strict=True):
            found[path] = Image(name, sha256) if isinstance(sha256, str) else sha256
            if isinstance(sha256, str):
                remembered.append((real, status.st_size, status.st_mtime_ns, sha256))
        self.memory.remember_images(remembered)
        return found

    def _locate(self, path: str) -> tuple[str, str, os.stat_result]:
        """(name below the root, real path, status). Raises ImageError: outside, missing, no plain file."""
        if "\0" in path:
            raise ImageError("the name of an image holds a zero byte; mend the manifest.", code="image.missing")
        if not path.isprintable() and path != (shown := path.encode("utf-8", "backslashreplace").decode()):
            raise ImageError(f'the name of "{shown}" is not UTF-8; rename the file.', code="image.name")
        folder, last = os.path.split(os.path.join(self._real_base, path))
        real_folder = self._real_folders.get(folder)
        if real_folder is None:
            real_folder = self._real_folders[folder] = os.path.realpath(folder)
        real = os.path.join(real_folder, last)
        try:
            status = os.lstat(real)
            if stat.S_ISLNK(status.st_mode) or last in ("", ".", ".."):
                real = os.path.realpath(real)
                status = os.stat(real)
        except OSError as error:
            raise ImageError(
                f'there is no image "{path}": {error.strerror}. Check the path; relative ones begin at {self.base}.',
                code="image.missing",
            ) from error
        if not (real + os.sep).startswith(self._real_root.rstrip(os.sep) + os.sep):
            raise ImageError(
                f'the image "{path}" lies outside of {self.root}. Name a folder that holds all images (--images DIR).',
                code="image.outside",
            )
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f'"{path}" is no plain file; give the path of a picture.', code="image.missing")
        name = real[len(self._real_root.rstrip(os.sep)) + 1 :]
        return name.replace(os.sep, "/"), real, status


def _hash_all(paths: Sequence[str]) -> Iterator[str | ImageError]:
    began = time.monotonic()
    yield from _hash_each(paths[:_AT_ONCE])
    rest = paths[_AT_ONCE:]
    if time.monotonic() - began < _QUICK * _AT_ONCE:
        yield from _hash_each(rest)
        return
    groups = [rest[start : start + _AT_ONCE] for start in range(0, len(rest), _AT_ONCE)]
    with ThreadPoolExecutor(READERS) as pool:
        for group in pool.map(_hash_each, groups):
            yield from group


def _hash_each(paths: Sequence[str]) -> list[str | ImageError]:
    return [_hash_one(path) for path in paths]


def _hash_one(path: str) -> str | ImageError:
    try:
        return file_sha256(Path(path))
    except OSError as error:
        unreadable = ImageError(f"the image {path} cannot be read: {error.strerror}.", code="image.unreadable")
        unreadable.__cause__ = error
        return unreadable


def check_unchanged(path: Path, sha256: str) -> None:
    """Raise ImageError (`image.changed`) when a file is no longer what was planned, or is gone."""
    found = _hash_one(str(path))
    if isinstance(found, ImageError):
        raise found from found.__cause__
    if found != sha256:
        raise ImageError(
            f"the image {path} was changed after it was planned; give the manifest again.", code="image.changed"
        )
