"""Keep renders on this machine's disk until they are encoded, so that a killed process loses none.

Files are named by task and have the safetensors format: loading them runs no code.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...svd_core.utils.atomic_files import remove_abandoned, unfinished_folder
from ...svd_core.utils.user_tempdir import private_folder
from .folder import RunFolder
from .rendering import Rendered

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

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
        metadata = {
            "facts": json.dumps(rendered.facts),
            "notes": json.dumps(list(rendered.notes)),
            "sum": _checksum(rendered.arrays),
        }
        name = f"{task_id}{_SUFFIX}"
        with unfinished_folder(self.path) as temporary:
            try:
                save_file(dict(rendered.arrays), temporary / name, metadata=metadata)
            except SafetensorError as error:  # raised for a full disk
                raise OSError(errno.EIO, str(error), str(self.path)) from error
            os.replace(temporary / name, self.path / name)

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

    def clean(self, folder: RunFolder) -> None:
        """Delete leftovers of killed writers, the renders of tasks that are done or failed, and an empty spool."""
        if self.path is None:
            return
        remove_abandoned(self.path)
        for file in self.path.glob(f"*{_SUFFIX}"):
            if folder.is_done(file.stem) or folder.failure_file(file.stem).exists():
                self.drop(file.stem)
        with contextlib.suppress(OSError):
            self.path.rmdir()


def open_spool(name: str) -> Spool:
    """Return this machine's spool of a run. Without a private folder, a spool that keeps nothing."""
    try:
        return Spool(private_folder("batch", name))
    except OSError as error:
        logger.warning("renders cannot be kept on this machine: %s", error)
        return Spool(None)


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the CRC-32 of names and bytes. Files are not flushed, so after a power cut they may contain zeros."""
    crc = 0
    for name in sorted(arrays):
        crc = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
