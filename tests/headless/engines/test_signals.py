"""Test the handling of signals while nodes run."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from svd_stages.headless.cli.main import _StopSignal
from svd_stages.headless.engines.signals import STOP_SIGNALS, stopping_at_signals

HANDLERS = {"Python's": signal.default_int_handler, "the command line's": _StopSignal()}


pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_interrupts_and_the_second_raises(number, handler):
    interrupts = []
    signal.signal(number, handler)
    with stopping_at_signals(lambda: interrupts.append(number), grace=60):
        signal.raise_signal(number)
        assert interrupts == [number]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert interrupts == [number] and signal.getsignal(number) is handler


def test_a_node_that_reaches_no_step_is_stopped_after_the_grace_time():
    signal.signal(signal.SIGTERM, _StopSignal())
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stopping_at_signals(lambda: None, grace=0.1):
        signal.raise_signal(signal.SIGTERM)
        while time.monotonic() - start < 60:
            time.sleep(0.01)
    assert time.monotonic() - start < 30


def test_a_run_that_ended_in_time_is_not_interrupted_afterwards():
    signal.signal(signal.SIGTERM, _StopSignal())
    with stopping_at_signals(lambda: None, grace=0.1):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.3)


def test_handlers_that_do_not_raise_are_called_and_do_not_interrupt():
    calls, interrupts = [], []
    signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    with stopping_at_signals(lambda: interrupts.append(1)):
        signal.raise_signal(signal.SIGTERM)
    assert calls == [signal.SIGTERM] and interrupts == []


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with stopping_at_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def test_other_threads_change_no_handlers():
    def work() -> None:
        with stopping_at_signals(lambda: None):
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [before]
