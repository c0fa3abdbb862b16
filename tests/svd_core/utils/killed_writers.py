"""Start processes that save files in a loop, and kill each at a random time.

    python killed_writers.py FOLDER COUNT SEED

Prints the number of killed processes, and how many of them were writing a file.
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


def save_forever(folder: Path) -> None:
    """Save numbered files of three formats and replace one file, in a loop. Each process begins with another format."""
    torch.set_num_threads(1)
    frames = torch.rand(FRAMES, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    path = output_files.resolve_prefix(folder, "clip")
    writers = (
        lambda: output_files.save_numbered(path, "png", lambda file: video_io.encode_png(file, frames[0])),
        lambda: output_files.save_numbered(path, "mp4", lambda file: video_io.encode_mp4(file, frames, 7)),
        lambda: output_files.save_numbered(path, "webp", lambda file: video_io.encode_webp(file, frames, 7, method=0)),
        lambda: replace_video(folder / "latest.mp4", frames),
    )
    for turn in itertools.count(os.getpid()):
        writers[turn % len(writers)]()


def replace_video(path: Path, frames: torch.Tensor) -> None:
    with output_files.replacing(path) as temporary:
        video_io.encode_mp4(temporary, frames, 7)


def kill_writers(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Return the number of killed writers, and of those that left a temporary file."""
    Image.init()
    rng, killed, while_writing = random.Random(seed), 0, 0
    for _ in range(count):
        writer = os.fork()
        if writer == 0:
            try:
                save_forever(folder)
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(writer, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
        while_writing += any(folder.glob("*.part"))
    return killed, while_writing


if __name__ == "__main__":
    print(*kill_writers(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
