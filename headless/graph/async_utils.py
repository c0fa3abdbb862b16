"""Running coroutines from code that is not one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_sync(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, and stop what it has begun and left. Where this thread has a loop that runs already
    (a notebook), in another thread.

    Not by asyncio.run, which would keep Ctrl-C from a node that computes.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _in_new_loop(work)
    answers: list[Result] = []
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            answers.append(_in_new_loop(work))
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
    thread.start()
    while not ended.is_set():
        try:
            ended.wait(0.1)
        except BaseException as stop:  # Ctrl-C reaches this thread, and the work is in the other
            _raise_in(thread, type(stop))
    if errors:
        raise errors[0]
    return answers[0]


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Have an exception come up in another thread, as soon as it runs Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


def _in_new_loop(work: Coroutine[Any, Any, Result]) -> Result:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        try:
            return loop.run_until_complete(work)
        finally:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            if left:
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))


async def settled(answer: Any) -> Any:
    """What an answer comes to: itself, or what it gives when it is a coroutine."""
    return await answer if inspect.isawaitable(answer) else answer


def settle_all(answers: list[Any]) -> list[Any]:
    """The same of several, from code that is no coroutine."""
    if not any(inspect.isawaitable(answer) for answer in answers):
        return answers

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(settled(answer) for answer in answers)))

    return run_sync(all_of_them())


@coroutine
def inside(work: Coroutine[Any, Any, Result], context: Callable[[], AbstractContextManager[Any]]) -> Generator:
    """`work` with each of its steps inside a context of its own, which no other coroutine sees."""
    value, error = None, None
    while True:
        with context():
            try:
                waits_for = work.send(value) if error is None else work.throw(error)
            except StopIteration as stop:
                return stop.value
        try:
            value, error = (yield waits_for), None
        except BaseException as thrown:
            value, error = None, thrown
