"""Model files that are opened once and must not change while they are read.

Files are read, not memory-mapped: if another program truncates a mapped file, the next access ends the process with
SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from ..errors import CheckpointError, printable
from ..utils.safe_open import NotRegularFileError, open_regular_file


@dataclass(frozen=True)
class FileState:
    """Identity and version of a file: device, inode, size in bytes, modification time in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """Take the fields of an `os.stat` result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class ModelFile:
    """A file that is open for reading. `state` is its state at opening."""

    path: Path
    state: FileState
    stream: FileIO

    @property
    def name(self) -> str:
        """The file's name, printable, for messages."""
        return printable(self.path.name)

    def read(self, most: int) -> bytes:
        """Read up to `most` bytes from the start of the file."""
        content = bytearray(min(most, self.state.size))
        return bytes(content[: self._fill(0, memoryview(content))])

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` (bytes) from offset `start`. Raises CheckpointError if the file ends before that."""
        if self._fill(start, target) < len(target):
            raise _changed(self.name)

    def _fill(self, start: int, target: memoryview) -> int:
        """Read into `target` and return the number of bytes read, fewer at the end of the file."""
        done = 0
        try:
            self.stream.seek(start)
            while done < len(target) and (count := self.stream.readinto(target[done:])):
                done += count
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return done

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file was modified or replaced since it was opened."""
        try:
            at_path = FileState.of(os.stat(self.path))
        except OSError as error:
            raise _changed(self.name) from error
        if not self.state == FileState.of(os.fstat(self.stream.fileno())) == at_path:
            raise _changed(self.name)


@contextmanager
def open_model_file(path: Path) -> Iterator[ModelFile]:
    """Open a file for reading. Symbolic links are followed.

    Raises:
        CheckpointError: The file is missing, unreadable, or not a regular file.
    """
    try:
        stream = open_regular_file(path)
    except NotRegularFileError as error:
        raise CheckpointError(
            f'the checkpoint "{printable(path)}" must be a regular file; {error.strerror}. Choose the model\'s file.',
            code="checkpoint.not_a_file",
        ) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    with stream:
        yield ModelFile(path, FileState.of(os.fstat(stream.fileno())), stream)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or "no file can have this name"
    return CheckpointError(
        f'the checkpoint "{printable(path)}" cannot be read: {reason}. Check the path and its permissions.',
        code="checkpoint.unreadable",
    )


def _changed(name: str) -> CheckpointError:
    return CheckpointError(
        f'"{name}" was changed, truncated or replaced while it was read, so the data may mix two models. Wait until '
        "the program that writes it is done, and load it again.",
        code="checkpoint.changed",
    )
