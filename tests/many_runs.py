"""The command line for tests that need many runs of it: heavy libraries are loaded once, and each run is a fork.

    python many_runs.py

Each line of stdin is a JSON list: the bytes that a file may have or null, and the arguments of `svd-stages`. Answered
are two lines: the run's process id at once, and its exit status at its end, negative when a signal killed it; before
all of them "ready".
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO


class Run:
    """A run that was started."""

    def __init__(self, answers: IO[str]):
        self._answers = answers
        self.pid = int(answers.readline())

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        return int(self._answers.readline())


class Runner:
    """Starts runs, one after the other."""

    def __init__(self, process: Popen[str]):
        self._process = process

    def start(self, *arguments: str, file_limit: int | None = None) -> Run:
        """Start `svd-stages` with these arguments; `file_limit` is how many bytes a file may have."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([file_limit, arguments]) + "\n")
        self._process.stdin.flush()
        return Run(self._process.stdout)

    def run(self, *arguments: str, file_limit: int | None = None) -> int:
        """Run it to its end; the exit status."""
        return self.start(*arguments, file_limit=file_limit).wait()


@contextlib.contextmanager
def runner(log: Path) -> Iterator[Runner]:
    """A runner; what its runs say goes to `log`."""
    with (
        log.open("wb") as said,
        Popen([sys.executable, __file__], stdin=PIPE, stdout=PIPE, stderr=said, text=True) as process,
    ):
        assert process.stdout and process.stdout.readline() == "ready\n", log.read_text()
        try:
            yield Runner(process)
        finally:
            process.kill()


def serve(requests: IO[str]) -> None:
    """Answer each request."""
    import torch
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel  # noqa: F401
    from svd_stages.headless.cli.main import main
    from transformers import CLIPVisionModelWithProjection  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in requests:
        pid = os.fork()
        if pid == 0:
            status = 1
            signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
            try:
                file_limit, arguments = json.loads(line)
                if file_limit is not None:  # of which what it says is none
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
                os.dup2(2, 1)
                status = main(arguments)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.stdin)
