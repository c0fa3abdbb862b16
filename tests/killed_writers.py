"""Writers that are killed: a loop of saving in a fork, SIGKILLed at a random time, again and again.

    python killed_writers.py FOLDER COUNT SEED

Printed are how many died, and how many of them in the middle of a file.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import av  # noqa: F401  so that no fork has to
import torch
from PIL import Image
from svd_stages.svd_core.media import video_io
from svd_stages.svd_core.utils import output_files

FRAMES = 4
SIDE = 64


def save_on_and_on(folder: Path) -> None:
    """Numbered files of three kinds, and one that is replaced each time; each process begins with another."""
    torch.set_num_threads(1)
    frames = torch.rand(FRAMES, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    place = output_files.resolve_prefix(folder, "clip")
    kinds = (
        lambda: output_files.save_numbered(place, "png", lambda path: video_io.encode_png(path, frames[0])),
        lambda: output_files.save_numbered(place, "mp4", lambda path: video_io.encode_mp4(path, frames, 7)),
        lambda: output_files.save_numbered(place, "webp", lambda path: video_io.encode_webp(path, frames, 7, method=0)),
        lambda: replace_video(folder / "latest.mp4", frames),
    )
    for turn in itertools.count(os.getpid()):
        kinds[turn % len(kinds)]()


def replace_video(path: Path, frames: torch.Tensor) -> None:
    with output_files.replacing(path) as temporary:
        video_io.encode_mp4(temporary, frames, 7)


def kill_writers(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Of `count` writers, how many were killed, and how many with a file begun."""
    Image.init()
    chance, killed, amid = random.Random(seed), 0, 0
    for _ in range(count):
        writer = os.fork()
        if writer == 0:
            try:
                save_on_and_on(folder)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, 0.08))
        os.kill(writer, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
        amid += any(folder.glob("*.part"))
    return killed, amid


if __name__ == "__main__":
    print(*kill_writers(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
