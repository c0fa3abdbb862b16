"""What was rendered and is not yet a clip: on this machine's disk, so that a killed process loses no render.

Files are named by task and hold tensors in safetensors' form: nothing in them can run.
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
        """Write it down, complete or not at all. Raises OSError."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        if self.path is None:
            return
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remove_abandoned(task_id)
        temporary = self.path / f".{task_id}.{os.getpid()}"
        told = {"facts": json.dumps(rendered.facts), "notes": json.dumps(list(rendered.notes))}
        about = {**told, "sum": _sum(rendered.arrays)}
        try:
            save_file(dict(rendered.arrays), temporary, metadata=about)
            os.replace(temporary, self.path / f"{task_id}{_SUFFIX}")
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(errno.EIO, str(error), str(temporary)) from error
        finally:
            temporary.unlink(missing_ok=True)

    def find(self, task_id: str) -> Rendered | None:
        """What was kept for a task; None when there is nothing, or it is damaged."""
        from safetensors import SafetensorError, safe_open

        if self.path is None:
            return None
        try:
            with safe_open(self.path / f"{task_id}{_SUFFIX}", framework="np") as file:
                about = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            facts, notes = (json.loads(about.get(name, "")) for name in ("facts", "notes"))
        except (OSError, SafetensorError, ValueError, RecursionError):
            return None
        is_whole = isinstance(facts, dict) and isinstance(notes, list) and about.get("sum") == _sum(arrays)
        return Rendered(arrays, facts, notes) if is_whole else None

    def drop(self, task_id: str) -> None:
        """It became a clip."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                (self.path / f"{task_id}{_SUFFIX}").unlink()

    def ids(self) -> Iterator[str]:
        """The tasks that something is kept for."""
        with contextlib.suppress(OSError):
            yield from (name.removesuffix(_SUFFIX) for name in os.listdir(self.path or "") if name.endswith(_SUFFIX))

    def remove_if_empty(self) -> None:
        """Take the folder away when nothing is kept."""
        if self.path is not None:
            self._remove_abandoned("")
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _remove_abandoned(self, task_id: str) -> None:
        """Remove what writers of a task ("": of any) had begun when they were killed."""
        import psutil

        assert self.path is not None
        for path in self.path.glob(f".{task_id}*"):
            pid = path.name.rpartition(".")[2]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                path.unlink(missing_ok=True)


def _sum(arrays: Mapping[str, np.ndarray]) -> str:
    """Nothing is flushed to the disk, so after a power cut a file may be there with zeros in it."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"
