"""What was rendered and is not yet a clip: on this machine's disk, so that a killed process loses no render.

Files are named by task and hold tensors in safetensors' form: nothing in them can run.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .rendering import Rendered

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Spool:
    """A folder of renders, for one run on one machine."""

    path: Path

    def keep(self, task_id: str, rendered: Rendered) -> None:
        """Write it down, complete or not at all. Raises OSError."""
        from safetensors.numpy import save_file

        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f".{task_id}.{os.getpid()}"
        try:
            save_file(dict(rendered.arrays), temporary, metadata={"facts": json.dumps(rendered.facts)})
            os.replace(temporary, self.path / f"{task_id}{_SUFFIX}")
        finally:
            temporary.unlink(missing_ok=True)

    def find(self, task_id: str) -> Rendered | None:
        """What was kept for a task; None when there is nothing, or it cannot be read."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path / f"{task_id}{_SUFFIX}", framework="np") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"))
                return Rendered({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
        except (OSError, SafetensorError, ValueError):
            return None

    def drop(self, task_id: str) -> None:
        """It became a clip."""
        with contextlib.suppress(OSError):
            (self.path / f"{task_id}{_SUFFIX}").unlink()

    def ids(self) -> Iterator[str]:
        """The tasks that something is kept for."""
        with contextlib.suppress(FileNotFoundError):
            yield from (name.removesuffix(_SUFFIX) for name in os.listdir(self.path) if name.endswith(_SUFFIX))

    def remove_if_empty(self) -> None:
        """Take the folder away when nothing is kept."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
