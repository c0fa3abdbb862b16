"""Batches of stand-in clips for tests: a planned run folder, drivers in processes of their own, and what they left."""

from __future__ import annotations

import contextlib
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
from svd_stages.headless.batch.ledger import Ledger
from svd_stages.headless.batch.lock import Shard, parse_shard, run_lock
from svd_stages.headless.batch.plan import PlannedRow, read_plan, write_plan
from svd_stages.headless.batch.reconcile import reconcile
from svd_stages.headless.batch.tasks import Task, digest, task_id
from svd_stages.headless.batch.worker import Setup, open_spool, tidy_spool
from svd_stages.headless.batch.worker_pool import Answer, Pool

TESTS = Path(__file__).parent


@dataclass
class Batch:
    """A run folder with stand-in rows in it. `config` is the stand-in's."""

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
        """One row for each image's name; the bytes of an image are its name."""
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
        return Setup(str(self.path), self.run_id, spool, "fake_renderer:StandIn", config, config.get("describe", {}))

    def renders(self) -> Counter[str]:
        """How often each task was rendered, or begun to be."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Counter(line.split()[0] for line in lines)

    def count(self) -> int:
        """How many renders there were in all."""
        return sum(self.renders().values())

    def states(self) -> Counter[str]:
        """States by what lies in the folder."""
        found = self.folder.scan()
        failed = ["quarantined" if each.get("quarantined") else "failed" for each in found.failed.values()]
        return Counter([*["done"] * len(found.done), *failed])

    def check_clips(self) -> None:
        """Every clip in the folder is whole and the right one; nothing unfinished lies about."""
        found = self.folder.scan()
        assert not found.orphans and not found.strays
        tasks = {task.id: task for task in self.tasks()}
        for task in found.done:
            record = self.folder.read_record(task)
            assert record is not None and record["task"] == task
            (clip,) = self.folder.media_files(record)
            assert clip.read_bytes() == frames_of(tasks[task]).tobytes()
        assert not list((self.path / "tmp").glob("*"))

    @contextlib.contextmanager
    def driver(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A driver in a process of its own: `python batches.py RUN ...`. It and its workers are ended afterwards."""
        command = [sys.executable, str(TESTS / "batches.py"), str(self.path), json.dumps(self.config), *arguments]
        with open(self.path / "driver.log", "ab") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            yield process
        finally:
            family = [*children_of(process.pid), process.pid]
            for pid in family:
                kill(pid)
            process.wait()

    def run(self, *arguments: str, timeout: float = 240) -> int:
        """A driver from its beginning to its end; its exit status."""
        with self.driver(*arguments) as process:
            return process.wait(timeout)

    def said(self) -> str:
        return (self.path / "driver.log").read_text()


def write_whole_plan(path: Path, rows: Iterable[PlannedRow]) -> None:
    """Write a plan to its end."""
    for _ in write_plan(path, "of a test", rows):
        pass


def task_of(image: str, seed: int = 3) -> Task:
    """The task of an image whose bytes are its name."""
    sha256 = digest(image)
    return Task(task_id("shared", sha256, {"1.seed": seed}), image, sha256, {"1.seed": seed}, seed)


def images(count: int, kind: str = "ok") -> list[str]:
    return [f"{kind}-{number:06}.png" for number in range(count)]


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    return []


def workers_of(pid: int) -> list[int]:
    """The processes that render for a driver: plain ones, or Ray's actors."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(psutil.Error):
            line = " ".join(psutil.Process(child).cmdline())
            if "headless.batch.worker_main" in line or line.startswith("ray::_Actor"):
                found.append(child)
    return found


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Any, seconds: float = 60) -> None:
    """Until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


class Scripted:
    """Workers that answer at once: every task is done one call later, unless `answer` says otherwise.

    It writes no clips. `asked` is all that they were asked: (worker, call, task's image or None, image read ahead).
    """

    name = "workers of a test"

    def __init__(self, count: int = 1, hello: Any = None):
        self.workers = range(count)
        self.asked: list[tuple[int, str, str | None, str | None]] = []
        self.hello = hello or (lambda worker: {"host": "h", "pid": worker, "makes": {}, "device": "d", "probe": "10"})
        self._encoding: dict[int, str] = {}
        self._answers: list[Answer] = []

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        _, task, upcoming = arguments[:3] if call == "work" else (None, None, None)
        self.asked.append((worker, call, task and task["image"], upcoming and upcoming["image"]))
        if call == "hello":
            self._answers.append(Answer(worker, self.hello(worker)))
            return
        before = self._encoding.pop(worker, None)
        done = [] if before is None else [{"task": before, "state": "done", "seconds": 0.1, "is_ours": True}]
        outcome = None if task is None else self.answer(task, worker)
        if task is not None and outcome is None:
            self._encoding[worker] = task["id"]
        if isinstance(outcome, Answer):
            self._answers.append(outcome)
        else:
            self._answers.append(Answer(worker, [*done, *([outcome] if outcome else [])]))

    def answer(self, task: dict[str, Any], worker: int) -> Any:
        return None

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
    batch: Batch, pool: Pool, options: Options | None = None, shard: Shard | None = None, told: list | None = None
) -> Progress:
    """A driver in this process."""
    options, shard = options or Options(), shard or Shard()
    with run_lock(batch.path, shard):
        ledger = Ledger(batch.path / f"ledger{shard.name}.sqlite")
        try:
            ledger.plan(task for task in batch.tasks() if shard.has(task.id))
            reconcile(batch.folder, ledger)
            return Driver(
                batch.folder,
                ledger,
                pool,
                options,
                lambda progress, outcome: told.append(outcome) if told is not None and outcome else None,
            ).run()
        finally:
            ledger.close()


def main() -> int:
    """python batches.py RUN CONFIG WORKERS [shard i/N] [deadline S] [ray ADDRESS]; 0, or 9 for a BatchError."""
    import logging

    from svd_stages.headless.batch.process_pool import ProcessPool
    from svd_stages.headless.batch.ray_pool import RayPool
    from svd_stages.svd_core.errors import BatchError

    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    run, config, workers, *rest = sys.argv[1:]
    told = dict(zip(rest[::2], rest[1::2], strict=True))
    batch = Batch(Path(run), json.loads(config))
    shard = parse_shard(told["shard"]) if "shard" in told else None
    deadline = float(told["deadline"]) if "deadline" in told else None
    pool: Pool
    if "ray" in told:
        pool = RayPool(batch.setup(), None if told["ray"] == "local" else told["ray"], int(workers), gpus=0)
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
        spool = open_spool(batch.setup().spool)
        tidy_spool(spool, batch.folder)
        spool.remove_if_empty()
    return 0


if __name__ == "__main__":
    sys.exit(main())
