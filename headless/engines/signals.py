"""Handle Ctrl-C, SIGTERM and SIGHUP while ComfyUI's executor runs: first interrupt the run, then raise."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""The signals that ask a program to stop. Windows has no SIGHUP."""
GRACE = 3.0
"""Seconds for a node to reach its next step. Process managers often send SIGKILL ten seconds after SIGTERM."""


@contextmanager
def stopping_at_signals(interrupt: Callable[[], Any], grace: float = GRACE) -> Iterator[None]:
    """Call `interrupt` at the first signal inside the `with`, and raise KeyboardInterrupt at the second.

    Only signals whose handler raises KeyboardInterrupt count. Other handlers are called and change nothing here.
    Outside the main thread, which receives no signals, this does nothing.

    Args:
        interrupt: Stops the run at the next step of the running node.
        grace: Seconds after the first signal until KeyboardInterrupt is raised anyway.
    """
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}
    timers: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        try:
            before[number](number, frame)
        except KeyboardInterrupt:
            if timers:
                raise
            timers.append(threading.Timer(grace, signal.raise_signal, (number,)))
            timers[0].daemon = True
            timers[0].start()
            interrupt()
            logger.warning("stopping at the node's next step; a second signal stops at once")

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, stop)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
