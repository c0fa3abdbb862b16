"""A model's file, opened once: a plain file, and from its first byte to its last the same one.

It is read and not mapped into memory: of a mapped file that somebody cuts short, the next touch ends the process.
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
class State:
    """Which file it is (device, number), its size in bytes, and when it was last written to."""

    device: int
    number: int
    size: int
    written: int

    @classmethod
    def of(cls, status: os.stat_result) -> State:
        """What the operating system says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, eq=False)
class PlainFile:
    """A file that is open for reading. `state` is what it was when it was opened."""

    path: Path
    state: State
    stream: FileIO

    @property
    def name(self) -> str:
        """What messages call it."""
        return printable(self.path.name)

    def read(self, most: int) -> bytes:
        """Up to `most` bytes from the beginning; fewer when the file ends."""
        found = bytearray(min(most, self.state.size))
        return bytes(found[: self._fill(0, memoryview(found))])

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target`, of bytes, from byte `start` on. Raises CheckpointError when the file ends before that."""
        if self._fill(start, target) < len(target):
            raise _changed(self.name)

    def _fill(self, start: int, target: memoryview) -> int:
        """How many bytes of `target` there were in the file to fill."""
        done = 0
        try:
            self.stream.seek(start)
            while done < len(target) and (count := self.stream.readinto(target[done:])):
                done += count
        except OSError as error:
            raise unreadable(self.path, error) from error
        return done

    def check_unchanged(self) -> None:
        """Raise CheckpointError when somebody wrote to the file since it was opened, or put another in its place."""
        try:
            there = State.of(os.stat(self.path))
        except OSError as error:
            raise _changed(self.name) from error
        if not self.state == State.of(os.fstat(self.stream.fileno())) == there:
            raise _changed(self.name)


@contextmanager
def open_model_file(path: Path) -> Iterator[PlainFile]:
    """The file at `path`, open for reading inside the `with`. Links are followed.

    Raises CheckpointError when there is none, when it cannot be read, and when it is no plain file.
    """
    try:
        stream = open_regular_file(path)
    except NotRegularFileError as error:
        raise CheckpointError(
            f'the checkpoint "{printable(path)}" must be a plain file; {error.strerror}. Choose the model\'s file.',
            code="checkpoint.not_a_file",
        ) from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    with stream:
        yield PlainFile(path, State.of(os.fstat(stream.fileno())), stream)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """The error of ours for a file that the operating system does not give."""
    reason = getattr(error, "strerror", None) or "no file can be called that"
    return CheckpointError(
        f'the checkpoint "{printable(path)}" cannot be read: {reason}. Check the path and its permissions.',
        code="checkpoint.unreadable",
    )


def _changed(name: str) -> CheckpointError:
    return CheckpointError(
        f'"{name}" was changed, cut short or replaced while it was read, so what was read is not one model. Wait until '
        "who writes it is done, and load it again.",
        code="checkpoint.changed",
    )
