"""The worker's side: a process that loads the models once and makes one clip after the other.

While a clip is rendered, the next one's image is read and the last one is encoded and put in place, each on a thread
of its own. Whatever is wrong with a row is an answer; what ends the process (a crash, a lost device, SIGKILL) is seen
by the driver.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...svd_core.errors import SVDStagesError
from ...svd_core.utils.redaction import redacted
from ...svd_core.utils.user_tempdir import private_folder
from .folder import RunFolder
from .rendering import Rendered, Renderer, make_renderer
from .spool import Spool
from .tasks import Task

logger = logging.getLogger(__name__)

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.EMFILE, errno.ENFILE, errno.ENOBUFS,
}  # fmt: skip
"""Trouble of a disk or a network that may be over later."""
LOST_DEVICE = 75
"""Exit status of a worker whose device is gone: EX_TEMPFAIL of sysexits.h."""

Outcome = dict[str, Any]
"""What became of a task, for JSON: `task`, `state` and what goes with it.

done    seconds (None when it was done before), is_ours
failed  code, message, node_id, class_type: nothing changes when it is tried again
again   why, message: worth another try. no_space: when there is space; passing: later; memory: on another worker, and
        `code` is what to call it when none can
"""


@dataclass(frozen=True)
class Setup:
    """What a worker is told when it starts; `as_dict` is for JSON.

    run     the run folder
    run_id  what its run.json says: a worker that finds another, or none, is not on the same disk
    spool   name of the folder on each machine for what was rendered: other runs, and other versions, have others
    runner  import path of the renderer, see `rendering`
    config  what it is called with
    shared  what `Renderer.describe` must say
    """

    run: str
    run_id: str
    spool: str
    runner: str
    config: Mapping[str, Any]
    shared: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Setup(**that)` is the setup again."""
        return {
            "run": self.run,
            "run_id": self.run_id,
            "spool": self.spool,
            "runner": self.runner,
            "config": dict(self.config),
            "shared": dict(self.shared),
        }


class Worker:
    """Makes clips. All calls come from one thread, one after the other."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._folder = RunFolder(Path(setup.run))
        self._spool = open_spool(setup.spool)
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "encode")
        self._prepared: dict[str, Future[Any]] = {}
        self._encoding: Future[Outcome] | None = None
        self._renderer: Renderer | None = None
        self._greeting = ""
        self._about: dict[str, Any] = {}

    def hello(self, greeting: str) -> dict[str, Any]:
        """Load what is needed, and forget what was begun before.

        greeting  what all later calls begin with, so that a process that was started again is known for one

        {"host", "pid"} and what `Renderer.probe` gives; {"refused": code, message, exit_status}; or {"again": why}.
        """
        self._drain()
        self._prepared.clear()
        try:
            self._check_run_folder()
            renderer = make_renderer(self._setup.runner, self._setup.config)
            found = dict(renderer.describe())
            if found != dict(self._setup.shared):
                raise SVDStagesError(_difference(found, self._setup.shared), code="batch.worker_differs")
            self._about = dict(renderer.probe())
        except SVDStagesError as error:
            if explain_error(error)["state"] == "again":
                return {"again": str(error)}
            return {"refused": {"code": error.code, "message": str(error), "exit_status": error.exit_status}}
        except Exception as error:
            outcome = explain_error(error)
            if outcome["state"] == "again":
                return {"again": outcome["message"]}
            logger.exception("this worker cannot begin")
            return {"refused": {"code": "error", "message": f"{type(error).__name__}: {error}", "exit_status": 4}}
        self._renderer, self._greeting = renderer, greeting
        tidy_spool(self._spool, self._folder)
        return {"host": socket.gethostname(), "pid": os.getpid(), **self._about}

    def work(
        self, greeting: str, task: Mapping[str, Any], upcoming: Mapping[str, Any] | None, attempt: int
    ) -> list[Outcome] | None:
        """Render a task and begin to encode it; read the image of `upcoming` meanwhile.

        Answers with what is known by then: of the clip that was encoded beside, and of this one when it failed or
        had been made before. None when this process was not greeted so: it knows of no clip beside.
        """
        if not self._is_greeted(greeting):
            return None
        this = Task(**task)
        if self._folder.is_done(this.id):
            return [*self._drain(), {"task": this.id, "state": "done", "seconds": None, "is_ours": False}]
        began = time.monotonic()
        try:
            rendered = self._spool.find(this.id)
            if rendered is None:
                prepared = self._prepare(this)
                self._read_ahead(upcoming)
                rendered = self._render(this, prepared)
            else:
                logger.info("%s was rendered before; it is only encoded", this.id[:12])
        except Exception as error:
            return [*self._drain(), self._failure(this, error)]
        seconds = time.monotonic() - began
        before = self._drain()
        self._encoding = self._writer.submit(self._encode, this, rendered, seconds, attempt)
        return before

    def drain(self, greeting: str) -> list[Outcome] | None:
        """Wait for the clip that is being encoded; what became of it. None as in `work`."""
        return self._drain() if self._is_greeted(greeting) else None

    def _is_greeted(self, greeting: str) -> bool:
        return self._renderer is not None and greeting == self._greeting

    def _drain(self) -> list[Outcome]:
        encoding, self._encoding = self._encoding, None
        return [] if encoding is None else [encoding.result()]

    def _read_ahead(self, upcoming: Mapping[str, Any] | None) -> None:
        self._prepared.clear()
        if upcoming is not None:
            task = Task(**upcoming)
            self._prepared[task.id] = self._reader.submit(self._ready.prepare, task)

    def _prepare(self, task: Task) -> Any:
        reading = self._prepared.pop(task.id, None) or self._reader.submit(self._ready.prepare, task)
        return reading.result()

    def _render(self, task: Task, prepared: Any) -> Rendered:
        rendered = self._ready.render(task, prepared)
        try:
            self._spool.keep(task.id, rendered)
        except OSError as error:
            logger.warning("what was rendered is kept in memory alone: %s", error)
        return rendered

    def _encode(self, task: Task, rendered: Rendered, seconds: float, attempt: int) -> Outcome:
        """Files, record, both in place."""
        began = time.monotonic()
        try:
            with self._folder.scratch(task.id) as scratch:
                made = self._ready.encode(task, rendered, scratch)
                encoding = time.monotonic() - began
                about = {"notes": list(rendered.notes), "seconds": {"render": seconds, "encode": encoding}}
                record = {**self._record(task, attempt), **about}
                is_ours = self._folder.commit(task.id, made, record)
        except Exception as error:
            outcome = self._failure(task, error)
            if outcome["state"] == "failed":
                self._spool.drop(task.id)  # whoever has it tried again wants it rendered, too
            return outcome
        self._spool.drop(task.id)
        return {"task": task.id, "state": "done", "seconds": seconds + encoding, "is_ours": is_ours}

    def _record(self, task: Task, attempt: int) -> dict[str, Any]:
        return {
            "image": {"name": task.image, "sha256": task.image_sha256},
            "values": redacted(task.values),
            "seed": task.seed,
            "attempt": attempt,
            "made_by": {**self._setup.shared, **self._about.get("makes", {})},
            "device": self._about.get("device"),
            "host": socket.gethostname(),
        }

    def _check_run_folder(self) -> None:
        try:
            self._folder.settings_file.read_bytes()
        except OSError as error:
            if error.errno in PASSING:
                raise
        settings = self._folder.read_settings()
        if settings is None or settings.get("run_id") != self._setup.run_id:
            raise SVDStagesError(
                f"{socket.gethostname()} sees another folder at {self._setup.run}, or none: its videos would be lost. "
                "The run folder must lie on a disk that all machines see under one path.",
                code="batch.run_folder",
            )

    @property
    def _ready(self) -> Renderer:
        assert self._renderer is not None, "hello comes first"
        return self._renderer

    def _failure(self, task: Task, error: Exception) -> Outcome:
        """What an error means for its row. A lost device ends the process, and the driver counts that."""
        if self._ready.is_lost(error):
            logger.error("the device is lost: %s", error)
            os._exit(LOST_DEVICE)
        return {"task": task.id, **explain_error(error)}


def explain_error(error: BaseException) -> Outcome:
    """`failed` or `again`, as in `Outcome`."""
    numbers = {each.errno for each in _chain(error) if isinstance(each, OSError)}
    told = f"{error.filename or 'a file'}: {error.strerror or error}." if isinstance(error, OSError) else str(error)
    if numbers & NO_SPACE or getattr(error, "code", None) == "output.no_space":
        return {"state": "again", "why": "no_space", "message": told}
    if any("OutOfMemory" in type(each).__name__ or isinstance(each, MemoryError) for each in _chain(error)):
        return {"state": "again", "why": "memory", "code": "memory.exhausted", "message": told}
    if isinstance(error, SVDStagesError) and error.code.partition(".")[0] == "memory":
        return {"state": "again", "why": "memory", "code": error.code, "message": told}
    if numbers & PASSING:
        return {"state": "again", "why": "passing", "message": told}
    if isinstance(error, SVDStagesError):
        where = {"node_id": getattr(error, "node_id", None), "class_type": getattr(error, "class_type", None)}
        return {"state": "failed", "code": error.code, "message": str(error), **where}
    if isinstance(error, OSError):
        return {"state": "failed", "code": "output.failed", "message": told}
    return {"state": "failed", "code": f"error.{type(error).__name__}", "message": str(error) or repr(error)}


def open_spool(name: str) -> Spool:
    """Where this machine keeps what was rendered for a run. What cannot be kept is rendered again after a kill."""
    try:
        return Spool(private_folder("batch", name))
    except OSError as error:
        logger.warning("what is rendered cannot be kept on this machine: %s", error)
        return Spool(None)


def tidy_spool(spool: Spool, folder: RunFolder) -> None:
    """Drop what was rendered for clips that are done, or that failed."""
    for task_id in list(spool.ids()):
        if folder.is_done(task_id) or folder.failure_file(task_id).exists():
            spool.drop(task_id)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what caused it."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    told = "; ".join(f"{name} is {found.get(name)} here and {wanted.get(name)} in the plan" for name in names)
    return (
        f"this worker ({socket.gethostname()}) would make other clips: {told}. Give it the same package and models, "
        "or plan anew."
    )
