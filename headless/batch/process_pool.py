"""Workers as processes on this machine. Needs only Python's standard library."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import worker_main
from .worker import LOST_DEVICE, Setup
from .worker_pool import Answer


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
        self._messages: queue.Queue[tuple[_Process | None, Answer | None]] = queue.Queue()
        self._processes: dict[int, _Process] = {}

    def ask(self, worker: int, call: str, *arguments: Any) -> None:
        """See `Pool.ask`. Start a process if the worker has none, because its death was returned.

        A process that has just died does not get the request; its death is the answer. If the system cannot start a
        process now, the answer is that of a worker that is not ready yet.
        """
        try:
            process = self._processes.get(worker) or self._start(worker)
        except OSError as error:
            self._messages.put((None, Answer(worker, {"again": f"no process can be started: {error}"})))
            return
        process.is_asked, process.has_begun = True, False
        _write_line(process.popen, [call, arguments])

    def answers(self, timeout: float) -> list[Answer]:
        """See `Pool.answers`."""
        messages: list[tuple[_Process | None, Answer | None]] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._messages.get(timeout=timeout))
            while True:
                messages.append(self._messages.get_nowait())
        answers = [self._to_driver(process, answer) for process, answer in messages]
        return [answer for answer in answers if answer is not None]

    def _to_driver(self, process: _Process | None, answer: Answer | None) -> Answer | None:
        """Translate a message of a process for the driver. None means: ignore it.

        - No process: it could not be started.
        - No answer: the process started its request. Recorded, not forwarded.
        - An answer of a process that is being terminated: ignored. Its exit will be reported.
        - The exit of a process that had not started its request: reported without one, so nobody is blamed.
        """
        if process is None:
            return answer
        if answer is None:
            process.has_begun = True
            return None
        if answer.died is None:
            process.is_asked = False
            return None if process.is_ending else answer
        del self._processes[process.worker]
        return Answer(process.worker) if process.is_asked and not process.has_begun else answer

    def end(self, worker: int) -> None:
        """See `Pool.end`."""
        self._processes[worker].is_ending = True
        self._processes[worker].popen.kill()

    def close(self) -> None:
        """See `Pool.close`."""
        for process in self._processes.values():
            process.popen.kill()
        for process in self._processes.values():
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
        process = self._processes[worker] = _Process(worker, popen)
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: _Process) -> None:
        """Queue the answers of a process and then its death."""
        assert process.popen.stdout is not None
        for line in process.popen.stdout:
            if line == worker_main.BEGUN:
                self._messages.put((process, None))
                continue
            with contextlib.suppress(ValueError):  # an incomplete line of a killed process
                self._messages.put((process, Answer(process.worker, json.loads(line))))
        self._messages.put((process, Answer(process.worker, died=_describe_exit(process.popen.wait()))))


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
