"""A renderer that makes no clips: for tests of batches, thousands of rows long. Each render is a line in a log.

What a row does is told by its image's name: ok, bad (fails), crash (ends the process), hang, lost (its device), noted,
odd (raises what nobody expects).
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from svd_stages.headless.batch.rendering import Rendered
from svd_stages.headless.batch.tasks import Task
from svd_stages.svd_core.errors import ImageError


class DeviceLost(Exception):
    """As torch raises it when a card is gone."""


class StandIn:
    """A `Renderer`. config: log (a file), seconds (a render takes), full (a file: while it is there, the disk is full),
    describe."""

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def describe(self) -> dict[str, str]:
        return dict(self._config.get("describe", {}))

    def probe(self) -> dict[str, Any]:
        return {"device": "stand-in", "makes": self._config.get("makes", {}), "probe": "00ff"}

    def prepare(self, task: Task) -> str:
        if "unreadable" in task.image:
            raise ImageError(f"{task.image} cannot be read", code="image.damaged")
        return task.image

    def render(self, task: Task, prepared: str) -> Rendered:
        assert prepared == task.image
        with open(self._config["log"], "a") as log:  # one write: several processes append
            log.write(f"{task.id} {os.getpid()}\n")
        time.sleep(self._config.get("seconds", 0.0))
        kind = Path(task.image).name.split("-")[0]
        if kind == "bad":
            raise ImageError(f"{task.image} is bad", code="image.damaged")
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(3600)
        if kind == "lost":
            raise DeviceLost(task.image)
        if kind == "odd":
            raise ZeroDivisionError("nobody expects this")
        notes = [{"code": "stand.in", "message": "noted"}] if kind == "noted" else []
        return Rendered({"frames": frames_of(task)}, {"seed": task.seed}, notes)

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
        if (full := self._config.get("full")) and os.path.exists(full):
            raise OSError(28, "No space left on device", str(folder))
        if "crashes_in_encoding" in task.image:
            os.kill(os.getpid(), signal.SIGKILL)
        path = folder / "clip.bin"
        path.write_bytes(rendered.arrays["frames"].tobytes())
        return [(path, {"frames_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})]

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, DeviceLost)


def frames_of(task: Task) -> np.ndarray:
    """What the clip of a task shows: drawn from its image and seed alone."""
    drawn = np.random.default_rng([int(task.image_sha256[:12], 16), task.seed or 0])
    return drawn.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
