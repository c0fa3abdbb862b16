"""Keep renders on this machine's disk until they are encoded, so that a killed process loses none.

Files are named by task and have the safetensors format: loading them runs no code.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .rendering import Rendered

if TYPE_CHECKING:
    import numpy as np

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Spool:
    """A folder of renders, for one run on one machine. `path` None keeps nothing."""

    path: Path | None

    def keep(self, task_id: str, rendered: Rendered) -> None:
        """Write a render, complete or not at all. Raises OSError."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        if self.path is None:
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_abandoned(task_id)
        temporary = self.path / f".{task_id}.{os.getpid()}"
        metadata = {
            "facts": json.dumps(rendered.facts),
            "notes": json.dumps(list(rendered.notes)),
            "sum": _checksum(rendered.arrays),
        }
        try:
            save_file(dict(rendered.arrays), temporary, metadata=metadata)
            os.replace(temporary, self.path / f"{task_id}{_SUFFIX}")
        except SafetensorError as error:  # raised for a full disk
            raise OSError(errno.EIO, str(error), str(temporary)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def find(self, task_id: str) -> Rendered | None:
        """Return the render of a task. None if there is none, or it is damaged."""
        from safetensors import SafetensorError, safe_open

        if self.path is None:
            return None
        try:
            with safe_open(self.path / f"{task_id}{_SUFFIX}", framework="np") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts, notes = (json.loads(metadata.get(name, "")) for name in ("facts", "notes"))
        except (OSError, SafetensorError, ValueError, RecursionError):
            return None
        is_complete = isinstance(facts, dict) and isinstance(notes, list) and metadata.get("sum") == _checksum(arrays)
        return Rendered(arrays, facts, notes) if is_complete else None

    def drop(self, task_id: str) -> None:
        """Delete the render of a task."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / f"{task_id}{_SUFFIX}").unlink()

    def ids(self) -> Iterator[str]:
        """Yield the ids of the tasks that have a render."""
        with contextlib.suppress(OSError):
            yield from (name.removesuffix(_SUFFIX) for name in os.listdir(self.path or "") if name.endswith(_SUFFIX))

    def remove_if_empty(self) -> None:
        """Delete the folder if it has no renders."""
        if self.path is not None:
            self._remove_abandoned("")
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _remove_abandoned(self, task_id: str) -> None:
        """Delete temporary files of killed writers, of one task or, for "", of all."""
        import psutil

        assert self.path is not None
        for path in self.path.glob(f".{task_id}*"):
            pid = path.name.rpartition(".")[2]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                path.unlink(missing_ok=True)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the CRC-32 of names and bytes. Files are not flushed, so after a power cut they may contain zeros."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
