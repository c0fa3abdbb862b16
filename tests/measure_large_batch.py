"""A batch of a hundred thousand pictures without its renders: planning, taking stock, and the driver's own work.

    python tests/measure_large_batch.py [ROWS]

Pictures are files of 2 kB, all different. Told are seconds and the peak of the process's memory: plan (hash, bind,
write, account), plan again (nothing changed), reconcile (every clip and record there, as `batch run` begins), drive
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
    """Do it, and print how long it took."""
    began = time.monotonic()
    work()
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.1f} s", flush=True)
    return seconds


def make_pictures(folder: Path, count: int) -> Path:
    """A manifest of `count` pictures that differ, a thousand in each folder."""
    with (folder / "rows.csv").open("w") as rows:
        rows.write("image,SVDMicroConditioning.motion_bucket_id\n")
        for number in range(count):
            image = folder / f"{number // 1000:03}" / f"{number:06}.png"
            image.parent.mkdir(exist_ok=True)
            image.write_bytes(number.to_bytes(4, "big") + bytes(2044))
            rows.write(f"{image.relative_to(folder)},{number % 255 + 1}\n")
    return folder / "rows.csv"


def make_clips(folder: RunFolder) -> None:
    """A clip of one byte and a record for every task."""
    for row in read_plan(folder.plan_file):
        assert row.task is not None
        record = folder.record_file(row.task.id)
        record.parent.mkdir(parents=True, exist_ok=True)
        name = f"{row.task.id}.mp4"
        (record.parent / name).write_bytes(b"x")
        files = [{"name": name, "bytes": 1, "sha256": ""}]
        record.write_text(json.dumps({"task": row.task.id, "files": files}))


def main(count: int = 100_000) -> dict[str, float]:
    """Measure; seconds by name, and memory in MB."""
    with tempfile.TemporaryDirectory() as name:
        manifest = make_pictures(Path(name), count)
        folder = RunFolder(Path(name, "run"))
        ask, here = headless.BatchRequest(folder.path, manifest), headless.RunConfig()
        found = {"plan": timed("plan", lambda: headless.plan_batch(ask, here))}
        found["again"] = timed("plan again", lambda: headless.plan_batch(ask, here))
        ledger = Ledger(folder.path / "ledger.sqlite")
        driver = Driver(folder, ledger, Scripted(16), Options(), lambda progress, outcome: None)
        found["drive"] = timed("drive", driver.run)
        make_clips(folder)
        found["reconcile"] = timed("reconcile", lambda: reconcile(folder, ledger))
        assert ledger.counts()["done"] == count
        ledger.close()
        found["memory"] = peak_mb()
        print(f"memory: {found['memory']:.0f} MB; {os.cpu_count()} cores")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
