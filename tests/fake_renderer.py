"""A fast renderer for tests of batches with thousands of rows. Each render writes a line to a log.

The start of the image's name selects what happens: ok, bad (fails), crash (kills the process), hang, lost (device),
noted (a warning), odd (an unexpected error).
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
    """Stands for torch's error when a GPU is lost."""


class FakeRenderer:
    """A `Renderer`.

    Args:
        config: log (a file), seconds (of a render), full (a file: while it exists, the disk is full), describe.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config = config

    def describe(self) -> dict[str, str]:
        return dict(self._config.get("describe", {}))

    def probe(self) -> dict[str, Any]:
        return {"device": "fake", "makes": {}, "probe": "00ff"}

    def prepare(self, task: Task) -> str:
        return task.image

    def render(self, task: Task, prepared: str) -> Rendered:
        assert prepared == task.image
        with open(self._config["log"], "a") as log:  # a single write, because several processes append
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
            raise ZeroDivisionError("unexpected")
        notes = [{"code": "fake.note", "message": "noted"}] if kind == "noted" else []
        return Rendered({"frames": frames_of(task)}, {"seed": task.seed}, notes)

    def encode(self, task: Task, rendered: Rendered, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
        if (full := self._config.get("full")) and os.path.exists(full):
            raise OSError(28, "No space left on device", str(folder))
        if "crashes_in_encoding" in task.image:
            os.kill(os.getpid(), signal.SIGKILL)
        path = folder / "video.bin"
        path.write_bytes(rendered.arrays["frames"].tobytes())
        return [(path, {"frames_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})]

    def is_lost(self, error: BaseException) -> bool:
        return isinstance(error, DeviceLost)


def frames_of(task: Task) -> np.ndarray:
    """Return the frames of a task, which depend only on its image and seed."""
    rng = np.random.default_rng([int(task.image_sha256[:12], 16), task.seed or 0])
    return rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
