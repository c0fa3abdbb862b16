"""Resolve and hash the images of a batch. All must be inside one folder; each is hashed once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...svd_core.errors import ImageError, quoted
from ...svd_core.media.hashing import file_sha256
from .ledger import Ledger

READERS = 8
"""Threads that hash. They wait for the disk, and hashing releases the GIL."""
_GROUP = 64
"""Files that a thread takes at a time, because small ones are hashed faster than they are handed over."""


@dataclass(frozen=True)
class Image:
    """An image file.

    Attributes:
        name: Path below the folder of images, with forward slashes.
        sha256: Of its bytes, in hex.
    """

    name: str
    sha256: str


@dataclass
class ImageFolder:
    """The folder that contains all images of a batch. Symbolic links are followed.

    Attributes:
        root: The folder.
        base: Relative paths start here. Inside or above the root.
        ledger: Remembers hashes. A hash is reused while the file's size and time of change stay the same.
    """

    root: Path
    base: Path
    ledger: Ledger

    def __post_init__(self) -> None:
        self._real_root = os.path.realpath(self.root)
        self._real_base = os.path.realpath(self.base)
        self._real_folder = cache(os.path.realpath)

    def resolve(self, paths: Sequence[str]) -> dict[str, Image | ImageError]:
        """Return the image, or the error, of each path of a manifest."""
        images: dict[str, Image | ImageError] = {}
        located: dict[str, tuple[str, str, tuple[int, int]]] = {}
        for path in dict.fromkeys(paths):
            try:
                located[path] = self._locate(path)
            except ImageError as error:
                images[path] = error
        states = {real: state for _, real, state in located.values()}
        known = self.ledger.known_images(list(states))
        hashes: dict[str, str | ImageError] = {
            real: sha256 for real, (*state, sha256) in known.items() if tuple(state) == states[real]
        }
        changed = [real for real in states if real not in hashes]
        hashes.update(zip(changed, _hash_all(changed), strict=True))
        hashed = [(real, hashes[real]) for real in changed]
        self.ledger.remember_images([(real, *states[real], each) for real, each in hashed if isinstance(each, str)])
        for path, (name, real, _) in located.items():
            sha256 = hashes[real]
            images[path] = Image(name, sha256) if isinstance(sha256, str) else sha256
        return images

    def _locate(self, path: str) -> tuple[str, str, tuple[int, int]]:
        """Return (name below the root, real path, (bytes, time of change in ns)).

        Raises:
            ImageError: The path is outside of the root, missing, not a regular file, or not UTF-8.
        """
        if "\0" in path:
            raise ImageError("an image's path has a zero byte. Correct the manifest.", code="image.missing")
        if not path.isprintable() and path != (escaped := path.encode("utf-8", "backslashreplace").decode()):
            raise ImageError(f'the name of "{escaped}" is not UTF-8. Rename the file.', code="image.name")
        folder, last = os.path.split(os.path.join(self._real_base, path))
        real = os.path.join(self._real_folder(folder), last)
        try:
            status = os.lstat(real)
            if stat.S_ISLNK(status.st_mode) or last in ("", ".", ".."):
                real = os.path.realpath(real)
                status = os.stat(real)
        except OSError as error:
            message = (
                f"there is no image {quoted(path)}: {error.strerror}. Relative paths start at {quoted(self.base)}."
            )
            raise ImageError(message, code="image.missing") from error
        inside = self._real_root.rstrip(os.sep) + os.sep
        if not (real + os.sep).startswith(inside):
            fix = "Give a folder with all images as `images`."
            message = f"the image {quoted(path)} is outside of {quoted(self.root)}. {fix}"
            raise ImageError(message, code="image.outside")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{quoted(path)} is not a regular file. Give the path of an image.", code="image.missing")
        return real[len(inside) :].replace(os.sep, "/"), real, (status.st_size, status.st_mtime_ns)


def _hash_all(paths: Sequence[str]) -> Iterator[str | ImageError]:
    """Hash files in order, with threads."""
    groups = [paths[start : start + _GROUP] for start in range(0, len(paths), _GROUP)]
    with ThreadPoolExecutor(READERS) as pool:
        for hashes in pool.map(lambda group: [_hash_one(path) for path in group], groups):
            yield from hashes


def _hash_one(path: str) -> str | ImageError:
    try:
        return file_sha256(Path(path))
    except OSError as error:
        unreadable = ImageError(f"the image {quoted(path)} cannot be read: {error.strerror}.", code="image.unreadable")
        unreadable.__cause__ = error
        return unreadable


def check_unchanged(path: Path, sha256: str) -> None:
    """Raise ImageError (`image.changed`) if a file differs from the planned one. Raises it if it is missing, too."""
    result = _hash_one(str(path))
    if isinstance(result, ImageError):
        raise result from result.__cause__
    if result != sha256:
        message = f"the image {quoted(path)} was changed after it was planned. Give the manifest again."
        raise ImageError(message, code="image.changed")
