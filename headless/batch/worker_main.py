"""Run a worker as a process: JSON requests [call, arguments] on stdin, one a line; JSON results on stdout.

    python -m svd_stages.headless.batch.worker_main, with the setup as the first line of stdin

The process ends when stdin is closed, also during a render. So workers end with their driver.
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

from ..process import own_process
from .worker import Setup, Worker

BEGUN = "begun\n"
"""This line is not a result: the worker starts the request."""


def main() -> None:
    """Serve requests until stdin is closed."""
    for name in ("SIGINT", "SIGHUP"):  # the terminal sends these to the driver's whole group; the driver handles them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print to stdout must not corrupt the results
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    worker = Worker(Setup(**json.loads(sys.stdin.readline())))
    requests: queue.Queue[tuple[str, list[Any]]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(sys.stdin, requests), daemon=True).start()
    while True:
        call, arguments = requests.get()
        results.write(BEGUN)
        results.flush()
        results.write(json.dumps(getattr(worker, call)(*arguments)) + "\n")
        results.flush()


def _read_requests(stream: IO[str], requests: queue.Queue[tuple[str, list[Any]]]) -> None:
    for line in stream:
        requests.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    with own_process():
        main()
