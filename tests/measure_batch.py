"""Measure the overhead of a batch: two workers of a batch against two processes that call `animate` in a loop.

    python tests/measure_batch.py [VIDEOS] [TURNS]

svd-nano, 14 frames of 128x128, 25 steps, one thread each. The two variants take turns. The output is the seconds per
video of a process, after its first one, and how much longer the batch takes (negative: it is faster). The loop writes
no files.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROCKET = Path(__file__).parent.parent / "example_workflows" / "rocket.png"
LOOP = """
import sys, torch, svd_stages
torch.set_num_threads(1)
for image in sys.argv[1:]:
    svd_stages.animate(image)
    print("done", flush=True)
"""


def run_loops(images: list[Path]) -> float:
    """Return the seconds per video of two processes that call `animate`."""
    halves = [list(map(str, images[number::2])) for number in (0, 1)]
    loops = [
        subprocess.Popen([sys.executable, "-c", LOOP, *half], stdout=subprocess.PIPE, text=True) for half in halves
    ]
    for loop in loops:
        assert loop.stdout and loop.stdout.readline() == "done\n"
    began = time.monotonic()
    for loop in loops:
        assert loop.stdout and loop.stdout.read() == "done\n" * (len(images) // 2 - 1)
    seconds = time.monotonic() - began
    for loop in loops:
        loop.wait()
    return seconds * 2 / (len(images) - 2)


def run_batch(folder: Path, run: Path, count: int) -> float:
    """Return the seconds per video of a batch with two workers."""
    from svd_stages import headless

    shutil.rmtree(run, ignore_errors=True)
    done: list[float] = []

    def watch(progress, event):
        if event is not None:
            done.append(time.monotonic())

    status = headless.run_batch(
        headless.BatchRequest(run, folder), headless.RunConfig(), headless.Workers(2), watch=watch
    )
    assert status.counts["done"] == count == len(done)
    return (done[-1] - done[1]) * 2 / (count - 2)


def main(count: int = 8, turns: int = 3) -> None:
    """Measure and print the medians."""
    with tempfile.TemporaryDirectory() as work:
        images = Path(work, "images")
        images.mkdir()
        for number in range(count):
            Image.open(ROCKET).convert("RGB").rotate(number).save(images / f"{number:03}.png")
        loops, batches = [], []
        for _ in range(turns):
            loops.append(run_loops(sorted(images.iterdir())))
            batches.append(run_batch(images, Path(work, "run"), count))
            print(f"loop {loops[-1]:.2f} s a video, batch {batches[-1]:.2f}", flush=True)
        loop, batch = statistics.median(loops), statistics.median(batches)
        print(f"medians: loop {loop:.2f} s a video, batch {batch:.2f}: {batch / loop - 1:+.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
