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
from dataclasses import dataclass
from typing import Any

from . import worker_main
from .worker import LOST_DEVICE, Setup
from .worker_pool import Answer

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
"""Longest delay in seconds before a process is restarted. A death within this time of the start is an early one."""
_EARLY_DEATHS = 8
"""Consecutive early deaths after which restarts are delayed."""


@dataclass(eq=False)
class _Process:
    """A process of a worker.

    Attributes:
        is_asked: It has a request that is not answered.
        has_begun: It has started this request.
        is_ending: It was killed by `ProcessPool.end`.
    """

    worker: int
    popen: subprocess.Popen[str]
    is_asked: bool = False
    has_begun: bool = False
    is_ending: bool = False


class ProcessPool:
    """A `Pool` of processes.

    Args:
        setup: Configuration of all workers.
        environments: Environment variables of each worker, in addition to this process's: {"CUDA_VISIBLE_DEVICES": "1"}
    """

    def __init__(self, setup: Setup, environments: Sequence[Mapping[str, str]]):
        self._setup, self._environments = setup, environments
        self.workers = range(len(environments))
        self.name = f"{len(self.workers)} {'process' if len(self.workers) == 1 else 'processes'}"
        self._messages: queue.Queue[tuple[_Process, Answer | None]] = queue.Queue()
        self._early_deaths = [0] * len(self.workers)
        self._processes = [self._start(worker) for worker in self.workers]

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`. A process that has just died does not get the request; its death is the answer."""
        process = self._processes[worker]
        process.is_asked, process.has_begun = True, False
        _write_line(process.popen, [call, arguments])

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`. A process that died has been restarted when its death is returned."""
        messages: list[tuple[_Process, Answer | None]] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._messages.get(timeout=timeout))
            while True:
                messages.append(self._messages.get_nowait())
        answers = [self._to_driver(process, answer) for process, answer in messages]
        return [answer for answer in answers if answer is not None]

    def _to_driver(self, process: _Process, answer: Answer | None) -> Answer | None:
        """Translate a message of a process for the driver. None means: ignore it.

        - No answer: the process started its request. Recorded, not forwarded.
        - An answer of a process that is being terminated: ignored. Its exit will be reported.
        - The exit of a process that had not started its request: reported without one, so nobody is blamed.
        """
        if answer is None:
            process.has_begun = True
            return None
        if answer.died is None:
            process.is_asked = False
            return None if process.is_ending else answer
        if not self._restart(process, answer):
            return None
        return Answer(process.worker) if process.is_asked and not process.has_begun else answer

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        self._processes[worker].is_ending = True
        self._processes[worker].popen.kill()

    def close(self) -> None:
        """See `Pool.close`."""
        for process in self._processes:
            process.popen.kill()
        for process in self._processes:
            process.popen.wait()
            for stream in (process.popen.stdin, process.popen.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def _start(self, worker: int) -> _Process:
        """Start a process, send it the setup, and start a thread that reads its answers."""
        popen = subprocess.Popen(  # noqa: S603 this Python with a module of this package, no untrusted arguments
            [sys.executable, "-m", worker_main.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **self._environments[worker]},
            start_new_session=True,  # Ctrl-C must reach only the driver
        )
        _write_line(popen, vars(self._setup))
        process = _Process(worker, popen)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: _Process) -> None:
        """Queue the answers of a process and then its death."""
        began, worker = time.monotonic(), process.worker
        assert process.popen.stdout is not None
        for line in process.popen.stdout:
            if line == worker_main.BEGUN:
                self._messages.put((process, None))
                continue
            with contextlib.suppress(ValueError):  # an incomplete line of a killed process
                self._messages.put((process, Answer(worker, json.loads(line))))
        status = process.popen.wait()
        is_early = time.monotonic() - began < _LONGEST_WAIT
        self._early_deaths[worker] = self._early_deaths[worker] + 1 if is_early else 0
        if self._early_deaths[worker] > _EARLY_DEATHS:
            time.sleep(min(_LONGEST_WAIT, 2.0 ** min(10, self._early_deaths[worker] - _EARLY_DEATHS)))
        self._messages.put((process, Answer(worker, died=_describe_exit(status))))

    def _restart(self, process: _Process, death: Answer) -> bool:
        """Start another process. If the system cannot start one now, return False and queue the death again."""
        try:
            self._processes[process.worker] = self._start(process.worker)
            return True
        except OSError as error:
            logger.warning("no process can be started for worker %d: %s", process.worker + 1, error)
            retry = threading.Timer(1.0, self._messages.put, [(process, death)])
            retry.daemon = True
            retry.start()
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
