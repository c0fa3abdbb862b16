"""Measure a batch of a hundred thousand images without its renders: planning, reconciling, and the driver's own work.

    python tests/measure_large_batch.py [ROWS]

Images are files of 2 kB, all different. The output is seconds and the process's peak memory: plan (hash, validate,
write), plan again (nothing changed), reconcile (all videos and records exist, as at the start of `batch run`), drive
(workers that answer at once).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from batches import Scripted
from peak_memory import peak_mb
from svd_stages import headless
from svd_stages.headless.batch.driver import Driver, Options
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.ledger import Ledger, reconcile
from svd_stages.headless.batch.plan import read_plan


def timed(name: str, work: Callable[[], object]) -> float:
    """Call `work` and print its seconds."""
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.1f} s", flush=True)
    return seconds


def write_images(folder: Path, count: int) -> Path:
    """Write `count` different images, a thousand in each folder, and their manifest."""
    with (folder / "rows.csv").open("w") as rows:
        rows.write("image,SVDMicroConditioning.motion_bucket_id\n")
        for number in range(count):
            image = folder / f"{number // 1000:03}" / f"{number:06}.png"
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(number.to_bytes(4, "big") + bytes(2044))
            rows.write(f"{image.relative_to(folder)},{number % 255 + 1}\n")
    return folder / "rows.csv"


def write_videos(folder: RunFolder) -> None:
    """Write a video of one byte and a record for each task."""
    for row in read_plan(folder.plan_file):
        assert row.task is not None
        record = folder.record_file(row.task.id)
        record.parent.mkdir(parents=True, exist_ok=True)
        name = f"{row.task.id}.mp4"
        (record.parent / name).write_bytes(b"x")
        files = [{"name": name, "bytes": 1, "sha256": ""}]
        record.write_text(json.dumps({"task": row.task.id, "files": files}))


def main(count: int = 100_000) -> dict[str, float]:
    """Measure, and return seconds by name, and memory in MB."""
    with tempfile.TemporaryDirectory() as name:
        manifest = write_images(Path(name), count)
        folder = RunFolder(Path(name, "run"))
        request, config = headless.BatchRequest(folder.path, manifest), headless.RunConfig()
        times = {"plan": timed("plan", lambda: headless.plan_batch(request, config))}
        times["again"] = timed("plan again", lambda: headless.plan_batch(request, config))
        ledger = Ledger(folder.path / "ledger.sqlite")
        driver = Driver(folder, ledger, Scripted(16), Options(), lambda progress, outcome: None)
        times["drive"] = timed("drive", driver.run)
        write_videos(folder)
        times["reconcile"] = timed("reconcile", lambda: reconcile(folder, ledger))
        assert ledger.counts()["done"] == count
        ledger.close()
        times["memory"] = peak_mb()
        print(f"memory: {times['memory']:.0f} MB; {os.cpu_count()} cores")
    return times


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
