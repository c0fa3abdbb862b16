"""Ctrl-C and its like while somebody else's executor runs nodes: first as asked, then at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
GRACE = 3.0
"""Seconds that a node has to come to its next step. Who sends SIGTERM often kills ten seconds later."""


@contextmanager
def stopping_at_signals(interrupt: Callable[[], Any], grace: float = GRACE) -> Iterator[None]:
    """Inside the `with`, a signal whose handler would raise KeyboardInterrupt calls `interrupt`, which stops the run at
    a node's next step. The second one, or `grace` seconds, raise KeyboardInterrupt.

    Handlers are asked, so those of others that do something else do it still, and nothing is stopped. Outside the main
    thread, which alone has signals, nothing is done.
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
            logger.warning("stopping at the node's next step; once more stops at once")

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
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
