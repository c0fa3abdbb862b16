"""Workers as plain processes on this machine; needs nothing beside Python."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import worker_main
from .worker import LOST_DEVICE, Setup
from .worker_pool import Answer

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
"""Seconds before a process is started again that died again and again, each time earlier than that."""
_PATIENCE = 8
"""Early deaths in a row after which it begins to wait."""


class ProcessPool:
    """A `Pool` of processes.

    environments  one for each worker, laid over this process's own: {"CUDA_VISIBLE_DEVICES": "1"}
    """

    def __init__(self, setup: Setup, environments: Sequence[Mapping[str, str]]):
        self._setup, self._environments = setup, environments
        self._answers: queue.Queue[tuple[Answer | None, int]] = queue.Queue()
        self._begun: set[int] = set()  # pids of processes that are at work
        self._asked: dict[int, int] = {}  # worker -> pid of the process that was asked and has not answered
        self._ending: dict[int, int] = {}  # worker -> pid of the process that was ended and is not dead yet
        self._early_deaths = [0] * len(environments)
        self._lock = threading.Lock()
        self._closed = False
        self._processes: list[subprocess.Popen[str]] = []
        with self._lock:  # one that dies at once is started again when all are there
            for worker in self.workers:
                self._processes.append(self._start(worker))

    @property
    def name(self) -> str:
        """How many."""
        count = len(self._environments)
        return f"{count} {'process' if count == 1 else 'processes'}"

    @property
    def workers(self) -> Sequence[int]:
        """Their numbers."""
        return range(len(self._environments))

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`. To a process that has just died nothing comes; that it died is the answer."""
        process = self._processes[worker]
        self._asked[worker] = process.pid
        stdin = process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):
            stdin.write(json.dumps([call, arguments]) + "\n")
            stdin.flush()

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`. A process that died has been started again when this tells of it."""
        found: list[tuple[Answer | None, int]] = []
        with contextlib.suppress(queue.Empty):
            found.append(self._answers.get(timeout=timeout) if timeout > 0 else self._answers.get_nowait())
            while True:
                found.append(self._answers.get_nowait())
        heard = [self._heard(answer, pid) for answer, pid in found]
        return [answer for answer in heard if answer is not None]

    def _heard(self, answer: Answer | None, pid: int) -> Answer | None:
        """What the driver is told; None: nothing. No answer at all: the process has begun with what it was asked.

        Not told is what a process said when it was to be ended: that it died is its answer. Nor that one died after
        whose death the next one was asked: that one answers, and was not greeted. Of one that died before it began with
        what it was asked, it is told that nobody was greeted, too.
        """
        if answer is None:
            self._begun.add(pid)
            return None
        is_ended = self._ending.get(answer.worker) == pid
        if answer.died is None:
            if is_ended:
                return None
            self._begun.discard(pid)
            self._asked.pop(answer.worker, None)
            return answer
        if is_ended:
            del self._ending[answer.worker]
        asked, had_begun = self._asked.get(answer.worker), pid in self._begun
        self._begun.discard(pid)
        if asked not in (None, pid):
            return None
        self._asked.pop(answer.worker, None)
        return answer if asked is None or had_begun else Answer(answer.worker)

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        process = self._processes[worker]
        self._ending[worker] = process.pid
        process.kill()

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def _start(self, worker: int) -> subprocess.Popen[str]:
        """A new process, told its setup, and a thread that hears it."""
        environment = {**os.environ, **self._environments[worker]}
        process = subprocess.Popen(  # noqa: S603 this Python, a module of ours, and nothing that anybody wrote
            [sys.executable, "-m", worker_main.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C is the driver's
        )
        stdin = process.stdin
        assert stdin is not None
        with contextlib.suppress(OSError):
            stdin.write(json.dumps(self._setup.as_dict()) + "\n")
            stdin.flush()
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()
        return process

    def _listen(self, worker: int, process: subprocess.Popen[str]) -> None:
        """Hand on what a process answers; when it dies, start another and say so."""
        began = time.monotonic()
        assert process.stdout is not None
        for line in process.stdout:
            if line == worker_main.BEGUN:
                self._answers.put((None, process.pid))
                continue
            with contextlib.suppress(ValueError):  # the half line of a process that was killed
                self._answers.put((Answer(worker, json.loads(line)), process.pid))
        status = process.wait()
        is_early = time.monotonic() - began < _LONGEST_WAIT
        self._early_deaths[worker] = self._early_deaths[worker] + 1 if is_early else 0
        if self._early_deaths[worker] > _PATIENCE:
            time.sleep(min(_LONGEST_WAIT, 2.0 ** min(10, self._early_deaths[worker] - _PATIENCE)))
        while not self._start_again(worker):
            time.sleep(1.0)
        self._answers.put((Answer(worker, died=_how(status)), process.pid))

    def _start_again(self, worker: int) -> bool:
        """False when no process can be had now."""
        with self._lock:
            try:
                if not self._closed:
                    self._processes[worker] = self._start(worker)
                return True
            except OSError as error:
                logger.warning("no process can be started for worker %d: %s", worker + 1, error)
                return False


def _how(status: int) -> str:
    if status == LOST_DEVICE:
        return "its device was lost"
    return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
