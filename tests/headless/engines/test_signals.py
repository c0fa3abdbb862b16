"""Signals while nodes run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest
from svd_stages.headless.cli.main import _Stop
from svd_stages.headless.engines.signals import SIGNALS, stopping_at_signals

NUMBERS = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
AT_ONCE = {"Python's": signal.default_int_handler, "the command line's": _Stop()}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("handler", AT_ONCE.values(), ids=AT_ONCE)
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number.name)
def test_the_first_signal_asks_and_the_second_raises(number, handler):
    asked = []
    signal.signal(number, handler)
    with stopping_at_signals(lambda: asked.append(number), grace=60):
        signal.raise_signal(number)
        assert asked == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert asked == [number] and signal.getsignal(number) is handler


def test_a_node_that_comes_to_no_step_is_stopped_in_time():
    signal.signal(signal.SIGTERM, _Stop())
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping_at_signals(lambda: None, grace=0.1):
        signal.raise_signal(signal.SIGTERM)
        while time.monotonic() - began < 60:
            time.sleep(0.01)
    assert time.monotonic() - began < 30


def test_a_run_that_ended_in_time_is_not_interrupted_afterwards():
    signal.signal(signal.SIGTERM, _Stop())
    with stopping_at_signals(lambda: None, grace=0.1):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.3)


def test_handlers_that_mean_something_else_do_it_still():
    heard, asked = [], []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with stopping_at_signals(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM] and asked == []


def test_what_is_ignored_stays_so():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with stopping_at_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_other_threads_have_no_signals():
    def work() -> None:
        with stopping_at_signals(lambda: None):
            seen.append(signal.getsignal(signal.SIGINT))

    seen = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
