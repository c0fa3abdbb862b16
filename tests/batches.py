"""Batches of fake videos for tests: a planned run folder, drivers in processes, and checks of their files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fake_renderer import frames_of
from svd_stages.headless.batch.driver import Driver, Options, Progress
from svd_stages.headless.batch.folder import RunFolder
from svd_stages.headless.batch.ledger import Ledger, reconcile
from svd_stages.headless.batch.lock import Shard, parse_shard, run_lock
from svd_stages.headless.batch.plan import PlannedRow, read_plan, write_plan
from svd_stages.headless.batch.spool import open_spool
from svd_stages.headless.batch.tasks import Task, digest, task_id
from svd_stages.headless.batch.worker import Setup
from svd_stages.headless.batch.worker_pool import Answer, Pool

TESTS = Path(__file__).parent
TIMEOUT = 500.0
"""Seconds. The machine may be busy."""


@dataclass
class Batch:
    """A run folder with rows for the fake renderer. `config` is the renderer's."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def log(self) -> Path:
        return self.path / "renders.log"

    @classmethod
    def planned(cls, path: Path, images: Sequence[str], **config: Any) -> Batch:
        """Plan one row for each image's name. The bytes of an image are its name."""
        batch = cls(path, config)
        tasks = [task_of(image) for image in images]
        rows = [PlannedRow(number, task.image, task.image, task) for number, task in enumerate(tasks, 1)]
        write_whole_plan(batch.folder.plan_file, rows)
        batch.folder.write_settings({"run_id": batch.run_id})
        return batch

    @property
    def run_id(self) -> str:
        return digest(str(self.path))[:16]

    def tasks(self) -> list[Task]:
        return [row.task for row in read_plan(self.folder.plan_file) if row.task is not None]

    def setup(self) -> Setup:
        config = {"log": str(self.log), **self.config}
        spool = f"tests-{self.run_id}"
        return Setup(
            str(self.path), self.run_id, spool, "fake_renderer:FakeRenderer", config, config.get("describe", {})
        )

    def renders(self) -> Counter[str]:
        """Count the renders of each task, also unfinished ones."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def count(self) -> int:
        """Count all renders."""
        return sum(self.renders().values())

    def states(self) -> Counter[str]:
        """Count the states that the files of the folder show."""
        scan = self.folder.scan()
        failed = ["quarantined" if failure.get("quarantined") else "failed" for failure in scan.failed.values()]
        return Counter([*["done"] * len(scan.done), *failed])

    def _is_swept(self) -> bool:
        """Sweep as the next start does, and return True if nothing temporary is left."""
        self.folder.sweep()
        return not list((self.path / "tmp").glob("*"))

    def check_videos(self) -> None:
        """Check that each video is complete and the right one, and that no temporary file is left."""
        scan = self.folder.scan()
        assert not scan.orphans and not scan.strays
        tasks = {task.id: task for task in self.tasks()}
        for task in scan.done:
            record = self.folder.read_record(task)
            assert record is not None and record["task"] == task
            (video,) = self.folder.media_files(record)
            assert video.read_bytes() == frames_of(tasks[task]).tobytes()
        wait_until(self._is_swept)  # workers of a killed driver end by themselves, a little later

    @contextlib.contextmanager
    def driver(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a driver as a process, `python batches.py RUN ...`. It and its workers are killed afterwards."""
        command = [sys.executable, str(TESTS / "batches.py"), str(self.path), json.dumps(self.config), *arguments]
        with open(self.path / "driver.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield process
        finally:
            family = [*children_of(process.pid), process.pid]
            for pid in family:
                kill(pid)
            process.wait()

    def run(self, *arguments: str) -> int:
        """Run a driver to its end and return its exit status."""
        with self.driver(*arguments) as process:
            return process.wait(TIMEOUT)

    def driver_log(self) -> str:
        return (self.path / "driver.log").read_text()


def write_whole_plan(path: Path, rows: Iterable[PlannedRow]) -> None:
    """Write a plan to its end."""
    for _ in write_plan(path, "of a test", rows):
        pass


def planned_row(number: int, name: str, seed: int | None = 5, task: str = "") -> PlannedRow:
    """Return a row with a task whose id follows from `task`, or from the number."""
    identity = hashlib.sha256((task or f"{number}").encode()).hexdigest()
    return PlannedRow(number, name, "a.png", Task(identity, "a.png", "0" * 64, {}, seed))


def commit_files(
    folder: RunFolder, task_id: str, contents: Sequence[bytes], suffix: str = ".mp4", **record: Any
) -> bool:
    """Commit a task with files of these contents. The record has the first bytes of each as `says`."""
    with folder.scratch() as scratch:
        files = [
            (scratch / f"{number}{suffix}", {"says": each[:3].decode("latin-1")})
            for number, each in enumerate(contents)
        ]
        for (path, _), content in zip(files, contents, strict=True):
            path.write_bytes(content)
        return folder.commit(task_id, files, record)


def task_of(image: str, seed: int = 3) -> Task:
    """Return the task of an image whose bytes are its name."""
    sha256 = digest(image)
    return Task(task_id("shared", sha256, {"1.seed": seed}), image, sha256, {"1.seed": seed}, seed)


def images(count: int, kind: str = "ok") -> list[str]:
    return [f"{kind}-{number:06}.png" for number in range(count)]


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def workers_of(pid: int) -> list[int]:
    """Return the pids of a driver's workers: processes, or Ray's actors."""
    workers = []
    for child in children_of(pid):
        with contextlib.suppress(psutil.Error):
            line = " ".join(psutil.Process(child).cmdline())
            if "headless.batch.worker_main" in line or line.startswith("ray::_Actor"):
                workers.append(child)
    return workers


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Any, seconds: float = TIMEOUT) -> None:
    """Poll until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.01)


class Scripted:
    """Workers that answer at once: each task is done one call later, unless `answer` returns another outcome.

    It writes no videos. `asked` lists all requests: (worker, call, task's image or None, image read ahead).
    """

    name = "workers of a test"

    def __init__(self, count: int = 1, hello: Any = None, answer: Any = None):
        self.workers = range(count)
        self.asked: list[tuple[int, str, str | None, str | None]] = []
        self.hello = hello or (lambda worker: {"host": "h", "pid": worker, "makes": {}, "device": "d", "probe": "10"})
        self.answer = answer or (lambda task, worker: None)
        self._encoding: dict[int, str] = {}
        self._answers: list[Answer] = []

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        _, task, upcoming = arguments[:3] if call == "work" else (None, None, None)
        self.asked.append((worker, call, task and task["image"], upcoming and upcoming["image"]))
        if call == "hello":
            self._answers.append(Answer(worker, self.hello(worker)))
            return
        previous = self._encoding.pop(worker, None)
        done = [] if previous is None else [{"task": previous, "state": "done", "seconds": 0.1, "is_ours": True}]
        outcome = None if task is None else self.answer(task, worker)
        if task is not None and outcome is None:
            self._encoding[worker] = task["id"]
        is_death = isinstance(outcome, Answer)
        self._answers.append(outcome if is_death else Answer(worker, [*done, *([outcome] if outcome else [])]))

    def forget(self) -> None:
        """Lose the videos that are being encoded, as a process that dies."""
        self._encoding.clear()

    def answers(self, timeout: float) -> list[Answer]:
        if not self._answers:
            time.sleep(min(timeout, 0.02))
        answers, self._answers = self._answers, []
        return answers

    def end(self, worker: int) -> None:
        self._answers.append(Answer(worker, died="ended"))

    def close(self) -> None:
        pass


def drive(
    batch: Batch, pool: Pool, options: Options | None = None, shard: Shard | None = None, events: list | None = None
) -> Progress:
    """Run a driver in this process. `events` gets the finished tasks."""
    shard = shard or Shard()

    def watch(progress: Progress, event: dict[str, Any] | None) -> None:
        if events is not None and event:
            events.append(event)

    with run_lock(batch.path, shard), contextlib.closing(Ledger(batch.path / f"ledger{shard.name}.sqlite")) as ledger:
        ledger.plan(task for task in batch.tasks() if shard.has(task.id))
        reconcile(batch.folder, ledger)
        return Driver(batch.folder, ledger, pool, options or Options(), watch).run()


def main() -> int:
    """python batches.py RUN CONFIG WORKERS [shard i/N] [deadline S] [ray ADDRESS]; 0, or 9 for a BatchError."""
    import logging

    from svd_stages.headless.batch.process_pool import ProcessPool
    from svd_stages.headless.batch.ray_pool import RayPool
    from svd_stages.svd_core.errors import BatchError

    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it by default
    run, config, workers, *rest = sys.argv[1:]
    options = dict(zip(rest[::2], rest[1::2], strict=True))
    batch = Batch(Path(run), json.loads(config))
    shard = parse_shard(options["shard"]) if "shard" in options else None
    deadline = float(options["deadline"]) if "deadline" in options else None
    pool: Pool
    if "ray" in options:
        pool = RayPool(batch.setup(), options["ray"], int(workers), gpus=0)
    else:
        pool = ProcessPool(batch.setup(), [{}] * int(workers))
    try:
        drive(batch, pool, Options(deadline=deadline, pause=0.2), shard)
    except KeyboardInterrupt:
        return 130
    except BatchError as error:
        print(f"{error.code}: {error}", flush=True)
        return 9
    finally:
        pool.close()
        open_spool(batch.setup().spool).clean(batch.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
