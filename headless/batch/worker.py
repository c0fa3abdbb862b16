"""The worker's side of a batch: load the models once and render one task after the other.

During a render, one thread reads the next image and another one encodes the previous video and puts it in place.
Errors of a row are returned as outcomes. What ends the process (a crash, a lost device, SIGKILL) is seen by the driver.
"""

from __future__ import annotations

import errno
import logging
import os
import pkgutil
import socket
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...svd_core.errors import SVDStagesError, quoted
from ...svd_core.utils.redaction import redacted
from .folder import RunFolder
from .rendering import Rendered, Renderer
from .spool import open_spool
from .tasks import Task

logger = logging.getLogger(__name__)

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
TEMPORARY = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.EMFILE, errno.ENFILE, errno.ENOBUFS,
}  # fmt: skip
"""Errors of a disk or a network that may be over later."""
LOST_DEVICE = 75
"""Exit status of a worker whose device is lost: EX_TEMPFAIL of sysexits.h."""

Outcome = dict[str, Any]
"""The outcome of a task, for JSON: `task`, `state` and more.

- done: seconds (None if it was done before), is_ours
- failed: code, message, node_id, class_type. A retry would fail again.
- again: why, message. A retry may succeed: no_space, when space is free; temporary, later; memory, on another worker.
  `code` is the error if the last one fails, too
"""


@dataclass(frozen=True)
class Setup:
    """The configuration of a worker. `vars(setup)` is its form for JSON.

    Attributes:
        run: The run folder.
        run_id: From run.json. A worker that reads another one, or none, does not see the same disk.
        spool: Name of the folder for renders on each machine. Differs between runs and between versions.
        runner: Import path `module:name` of the renderer, see `rendering`. Never read from a file of the run folder.
        config: Argument of the renderer.
        shared: Expected result of `Renderer.describe`.
    """

    run: str
    run_id: str
    spool: str
    runner: str
    config: Mapping[str, Any]
    shared: Mapping[str, str]


class Worker:
    """Renders tasks. All methods are called from one thread."""

    def __init__(self, setup: Setup):
        self._setup = setup
        self._folder = RunFolder(Path(setup.run))
        self._spool = open_spool(setup.spool)
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "encode")
        self._prepared: dict[str, Future[Any]] = {}
        self._encoding: Future[Outcome] | None = None
        self._renderer: Renderer  # with the environment set by hello
        self._environment: dict[str, Any]
        self._greeting: str | None = None

    def hello(self, greeting: str) -> dict[str, Any]:
        """Load the models and drop unfinished work.

        Args:
            greeting: First argument of all later calls. A restarted process has not got it and is recognized by that.

        Returns:
            {"host", "pid"} and the result of `Renderer.probe`; or {"refused": {code, message, exit_status}}; or
            {"again": message} if a later try may succeed.
        """
        self._drain()
        self._prepared.clear()
        try:
            self._check_run_folder()
            renderer: Renderer = pkgutil.resolve_name(self._setup.runner)(self._setup.config)
            own = dict(renderer.describe())
            if own != dict(self._setup.shared):
                raise SVDStagesError(_describe_difference(own, self._setup.shared), code="batch.worker_differs")
            self._environment = dict(renderer.probe())
        except Exception as error:
            outcome = explain_error(error)
            if outcome["state"] == "again":
                return {"again": outcome["message"]}
            if isinstance(error, SVDStagesError):
                return {"refused": {"code": error.code, "message": str(error), "exit_status": error.exit_status}}
            logger.exception("this worker cannot start")
            return {"refused": {"code": "error", "message": f"{type(error).__name__}: {error}", "exit_status": 4}}
        self._renderer, self._greeting = renderer, greeting
        self._spool.clean(self._folder)
        return {"host": socket.gethostname(), "pid": os.getpid(), **self._environment}

    def work(
        self, greeting: str, task: Mapping[str, Any], upcoming: Mapping[str, Any] | None, attempt: int
    ) -> list[Outcome] | None:
        """Render a task and start to encode it. Read the image of the task `upcoming` meanwhile.

        Returns:
            The outcome of the previous task, which was encoded meanwhile; and of this one if it failed or was done
            before. None if this process did not get this greeting.
        """
        if greeting != self._greeting:
            return None
        this = Task(**task)
        if self._folder.is_done(this.id):
            return [*self._drain(), {"task": this.id, "state": "done", "seconds": None, "is_ours": False}]
        began = time.monotonic()
        try:
            rendered = self._spool.find(this.id)
            if rendered is None:
                reading = self._prepared.pop(this.id, None) or self._read(this)
                prepared = reading.result()
                self._prepared = {} if upcoming is None else {upcoming["id"]: self._read(Task(**upcoming))}
                rendered = self._render(this, prepared)
            else:
                logger.info("%s was rendered before. It is only encoded", this.id[:12])
        except Exception as error:
            return [*self._drain(), self._failure(this, error)]
        seconds = time.monotonic() - began
        outcomes = self._drain()
        self._encoding = self._writer.submit(self._encode, this, rendered, seconds, attempt)
        return outcomes

    def drain(self, greeting: str) -> list[Outcome] | None:
        """Wait for the video that is being encoded and return its outcome. None as in `work`."""
        return self._drain() if greeting == self._greeting else None

    def _drain(self) -> list[Outcome]:
        encoding, self._encoding = self._encoding, None
        return [] if encoding is None else [encoding.result()]

    def _read(self, task: Task) -> Future[Any]:
        return self._reader.submit(self._renderer.prepare, task)

    def _render(self, task: Task, prepared: Any) -> Rendered:
        rendered = self._renderer.render(task, prepared)
        try:
            self._spool.keep(task.id, rendered)
        except OSError as error:
            logger.warning("a render is kept only in memory: %s", error)
        return rendered

    def _encode(self, task: Task, rendered: Rendered, seconds: float, attempt: int) -> Outcome:
        """Write the task's files and its record, and put both in place."""
        began = time.monotonic()
        try:
            with self._folder.scratch() as scratch:
                files = self._renderer.encode(task, rendered, scratch)
                encoding = time.monotonic() - began
                record = {
                    "image": {"name": task.image, "sha256": task.image_sha256},
                    "values": redacted(task.values),
                    "seed": task.seed,
                    "attempt": attempt,
                    "made_by": {**self._setup.shared, **self._environment.get("makes", {})},
                    "device": self._environment.get("device"),
                    "host": socket.gethostname(),
                    "notes": list(rendered.notes),
                    "seconds": {"render": seconds, "encode": encoding},
                }
                is_ours = self._folder.commit(task.id, files, record)
        except Exception as error:
            outcome = self._failure(task, error)
            if outcome["state"] == "failed":
                self._spool.drop(task.id)  # a user who retries the task wants it rendered again, too
            return outcome
        self._spool.drop(task.id)
        return {"task": task.id, "state": "done", "seconds": seconds + encoding, "is_ours": is_ours}

    def _check_run_folder(self) -> None:
        try:
            self._folder.settings_file.read_bytes()
        except OSError as error:
            if error.errno in TEMPORARY:
                raise
        settings = self._folder.read_settings()
        if settings is None or settings.get("run_id") != self._setup.run_id:
            problem = f"{socket.gethostname()} has another folder at {quoted(self._setup.run)}, or none"
            message = f"{problem}. All machines must have the run folder under the same path."
            raise SVDStagesError(message, code="batch.run_folder")

    def _failure(self, task: Task, error: Exception) -> Outcome:
        """Convert an error to an outcome. A lost device ends the process, which the driver counts as an attempt."""
        if any(map(self._renderer.is_lost, error_chain(error))):
            logger.error("the device is lost: %s", error)
            os._exit(LOST_DEVICE)
        return {"task": task.id, **explain_error(error)}


def explain_error(error: BaseException) -> Outcome:
    """Classify an error as `failed` or `again`, see `Outcome`."""
    chain = list(error_chain(error))
    numbers = {each.errno for each in chain if isinstance(each, OSError)}
    message = str(error)
    if isinstance(error, OSError):
        message = f"{quoted(error.filename) if error.filename else 'a file'}: {error.strerror or error}."
    code = error.code if isinstance(error, SVDStagesError) else ""
    if numbers & NO_SPACE or code == "output.no_space":
        return {"state": "again", "why": "no_space", "message": message}
    if any("OutOfMemory" in type(each).__name__ or isinstance(each, MemoryError) for each in chain):
        return {"state": "again", "why": "memory", "code": "memory.exhausted", "message": message}
    if code.partition(".")[0] == "memory":
        return {"state": "again", "why": "memory", "code": code, "message": message}
    if numbers & TEMPORARY:
        return {"state": "again", "why": "temporary", "code": "output.failed", "message": message}
    if isinstance(error, SVDStagesError):
        node = {"node_id": getattr(error, "node_id", None), "class_type": getattr(error, "class_type", None)}
        return {"state": "failed", "code": code, "message": str(error), **node}
    if isinstance(error, OSError):
        return {"state": "failed", "code": "output.failed", "message": message}
    return {"state": "failed", "code": f"error.{type(error).__name__}", "message": str(error) or repr(error)}


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _describe_difference(own: Mapping[str, str], expected: Mapping[str, str]) -> str:
    names = sorted(name for name in {*own, *expected} if own.get(name) != expected.get(name))
    text = "; ".join(f"{name} is {own.get(name)} here and {expected.get(name)} in the plan" for name in names)
    return f"this worker ({socket.gethostname()}) would render other videos: {text}. Install the same, or plan anew."
