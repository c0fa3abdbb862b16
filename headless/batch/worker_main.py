"""A worker as a process of its own: reads a JSON list [call, arguments] a line, says that it begins, and answers a JSON
value a line.

    python -m svd_stages.headless.batch.worker_main, with the setup as the first line

When the driver goes, so does this process: the end of its input ends it, in the middle of a render, too.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import sys
import threading
from typing import IO, Any

from .worker import Setup, Worker

BEGUN = "begun\n"
"""A line that is no answer: what was asked is begun."""


def main() -> None:
    """Serve until the input ends."""
    for name in ("SIGINT", "SIGHUP"):  # of the terminal, to the driver
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is printed is no answer
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    worker = Worker(Setup(**json.loads(sys.stdin.readline())))
    asked: queue.Queue[tuple[str, list[Any]]] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, asked), daemon=True).start()
    while True:
        call, arguments = asked.get()
        answers.write(BEGUN)
        answers.flush()
        answers.write(json.dumps(getattr(worker, call)(*arguments)) + "\n")
        answers.flush()


def _listen(stream: IO[str], asked: queue.Queue[tuple[str, list[Any]]]) -> None:
    for line in stream:
        call, arguments = json.loads(line)
        asked.put((call, arguments))
    os._exit(0)


if __name__ == "__main__":
    main()
