"""Workers as processes on this machine. Needs only Python's standard library."""

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
"""Longest delay in seconds before a process is restarted. A death within this time of the start is an early one."""
_EARLY_DEATHS = 8
"""Consecutive early deaths after which restarts are delayed."""


class ProcessPool:
    """A `Pool` of processes.

    Args:
        setup: Configuration of all workers.
        environments: Environment variables of each worker, in addition to this process's: {"CUDA_VISIBLE_DEVICES": "1"}
    """

    def __init__(self, setup: Setup, environments: Sequence[Mapping[str, str]]):
        self._setup, self._environments = setup, environments
        self._answers: queue.Queue[tuple[Answer | None, int]] = queue.Queue()
        self._begun: set[int] = set()  # pids of processes that have started their request
        self._asked: dict[int, int] = {}  # worker -> pid of the process that has an unanswered request
        self._ending: dict[int, int] = {}  # worker -> pid of the process that was killed by `end` and is not dead yet
        self._early_deaths = [0] * len(environments)
        self._lock = threading.Lock()
        self._closed = False
        self._processes: list[subprocess.Popen[str]] = []
        with self._lock:  # a process that dies at once must not be restarted before the list is complete
            for worker in self.workers:
                self._processes.append(self._start(worker))

    @property
    def name(self) -> str:
        """See `Pool.name`."""
        count = len(self._environments)
        return f"{count} {'process' if count == 1 else 'processes'}"

    @property
    def workers(self) -> Sequence[int]:
        """See `Pool.workers`."""
        return range(len(self._environments))

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`. A process that has just died does not get the request; its death is the answer."""
        process = self._processes[worker]
        self._asked[worker] = process.pid
        _write_line(process, [call, arguments])

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`. A process that died has been restarted when its death is returned."""
        messages: list[tuple[Answer | None, int]] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._answers.get(timeout=timeout) if timeout > 0 else self._answers.get_nowait())
            while True:
                messages.append(self._answers.get_nowait())
        answers = [self._to_driver(answer, pid) for answer, pid in messages]
        return [answer for answer in answers if answer is not None]

    def _to_driver(self, answer: Answer | None, pid: int) -> Answer | None:
        """Translate a message of a worker process for the driver. None means: ignore it.

        - No answer: the process started its task. Recorded, not forwarded.
        - An answer of a process that is being terminated: ignored. Its exit will be reported.
        - The exit of a process whose replacement already has the request: ignored. The replacement answers.
        - The exit of a process that had not started its task: reported without a task, so nobody is blamed.
        """
        if answer is None:
            self._begun.add(pid)
            return None
        is_ending = self._ending.get(answer.worker) == pid
        if answer.died is None and is_ending:
            return None
        had_begun = pid in self._begun
        self._begun.discard(pid)
        if is_ending:
            del self._ending[answer.worker]
        requested_pid = self._asked.get(answer.worker)
        if answer.died is not None and requested_pid not in (None, pid):
            return None
        self._asked.pop(answer.worker, None)
        is_idle_death = answer.died is not None and requested_pid is not None and not had_begun
        return Answer(answer.worker) if is_idle_death else answer

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        process = self._processes[worker]
        self._ending[worker] = process.pid
        process.kill()

    def close(self) -> None:
        """See `Pool.close`."""
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
        """Start a process, send it the setup, and start a thread that reads its answers."""
        environment = {**os.environ, **self._environments[worker]}
        process = subprocess.Popen(  # noqa: S603 this Python with a module of this package, no untrusted arguments
            [sys.executable, "-m", worker_main.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C must reach only the driver
        )
        _write_line(process, vars(self._setup))
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()
        return process

    def _listen(self, worker: int, process: subprocess.Popen[str]) -> None:
        """Queue the answers of a process. When it dies, start another one and queue its death."""
        began = time.monotonic()
        assert process.stdout is not None
        for line in process.stdout:
            if line == worker_main.BEGUN:
                self._answers.put((None, process.pid))
                continue
            with contextlib.suppress(ValueError):  # an incomplete line of a killed process
                self._answers.put((Answer(worker, json.loads(line)), process.pid))
        status = process.wait()
        is_early = time.monotonic() - began < _LONGEST_WAIT
        self._early_deaths[worker] = self._early_deaths[worker] + 1 if is_early else 0
        if self._early_deaths[worker] > _EARLY_DEATHS:
            time.sleep(min(_LONGEST_WAIT, 2.0 ** min(10, self._early_deaths[worker] - _EARLY_DEATHS)))
        while not self._restart(worker):
            time.sleep(1.0)
        self._answers.put((Answer(worker, died=_describe_exit(status)), process.pid))

    def _restart(self, worker: int) -> bool:
        """Start a process, unless the pool is closed. Return False if the system cannot start one now."""
        with self._lock:
            try:
                if not self._closed:
                    self._processes[worker] = self._start(worker)
                return True
            except OSError as error:
                logger.warning("no process can be started for worker %d: %s", worker + 1, error)
                return False


def _write_line(process: subprocess.Popen[str], value: Any) -> None:
    """Write a JSON line to a process. A process that has died does not raise."""
    line = json.dumps(value) + "\n"
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        process.stdin.write(line)
        process.stdin.flush()


def _describe_exit(status: int) -> str:
    if status == LOST_DEVICE:
        return "its device was lost"
    return f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
