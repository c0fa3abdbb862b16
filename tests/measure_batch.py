"""What a batch costs beside its renders: two workers of a batch against two processes that call `animate` in a loop.

    python tests/measure_batch.py [CLIPS] [TURNS]

svd-nano, 14 frames of 128x128, 25 steps, one thread each. The two ways take turns. Told are the seconds from clip to
clip of a process, after its first, and how much longer the batch takes (less than 0: it takes less). A loop writes no
files.
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
for picture in sys.argv[1:]:
    svd_stages.animate(picture)
    print("done", flush=True)
"""


def in_a_loop(pictures: list[Path]) -> float:
    """Seconds from clip to clip of the Python call, two processes at a time."""
    halves = [list(map(str, pictures[number::2])) for number in (0, 1)]
    loops = [
        subprocess.Popen([sys.executable, "-c", LOOP, *half], stdout=subprocess.PIPE, text=True) for half in halves
    ]
    for loop in loops:
        assert loop.stdout and loop.stdout.readline() == "done\n"
    began = time.monotonic()
    for loop in loops:
        assert loop.stdout and loop.stdout.read() == "done\n" * (len(pictures) // 2 - 1)
    seconds = time.monotonic() - began
    for loop in loops:
        loop.wait()
    return seconds * 2 / (len(pictures) - 2)


def in_a_batch(pictures: Path, run: Path, clips: int) -> float:
    """The same of a batch with two workers, until the last clip is in place."""
    from svd_stages import headless

    shutil.rmtree(run, ignore_errors=True)
    done: list[float] = []

    def watch(progress, outcome):
        if outcome is not None:
            done.append(time.monotonic())

    status = headless.run_batch(
        headless.BatchRequest(run, pictures), headless.RunConfig(), headless.Workers(2), watch=watch
    )
    assert status.counts["done"] == clips == len(done)
    return (done[-1] - done[1]) * 2 / (clips - 2)


def main(clips: int = 8, turns: int = 3) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        for number in range(clips):
            Image.open(ROCKET).convert("RGB").rotate(number).save(pictures / f"{number:03}.png")
        loops, batches = [], []
        for _ in range(turns):
            loops.append(in_a_loop(sorted(pictures.iterdir())))
            batches.append(in_a_batch(pictures, Path(folder, "run"), clips))
            print(f"loop {loops[-1]:.2f} s a clip, batch {batches[-1]:.2f}", flush=True)
        loop, batch = statistics.median(loops), statistics.median(batches)
        print(f"medians: loop {loop:.2f} s a clip, batch {batch:.2f}: {batch / loop - 1:+.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
