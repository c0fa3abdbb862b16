"""Run coroutines from synchronous code."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from types import coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_sync(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to completion and cancel the tasks that it leaves behind.

    If this thread already runs an event loop (a notebook), the coroutine runs in another thread. asyncio.run is not
    used, because it delays Ctrl-C until a computing node returns.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_in_new_loop(work)
    result: Future[Result] = Future()

    def run_in_thread() -> None:
        try:
            result.set_result(_run_in_new_loop(work))
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run_in_thread,))
    thread.start()
    while thread.is_alive():
        try:
            wait([result], 0.1)
        except BaseException as stop:  # Python raises Ctrl-C in this thread, but the other one runs the coroutine
            _raise_in(thread, type(stop))
    return result.result(timeout=0)


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    """Raise an exception in another thread as soon as it runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))


def _run_in_new_loop(work: Coroutine[Any, Any, Result]) -> Result:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        try:
            return loop.run_until_complete(work)
        finally:
            pending = asyncio.all_tasks(loop)
            for task in pending:
                task.cancel()
            if pending:
                loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))


async def resolve(value: Any) -> Any:
    """Return `value`, or the result of awaiting it if it is awaitable."""
    return await value if inspect.isawaitable(value) else value


def resolve_all(values: list[Any]) -> list[Any]:
    """Resolve several values from synchronous code. Awaitables run concurrently."""

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*map(resolve, values)))

    return run_sync(gather()) if any(map(inspect.isawaitable, values)) else values


@coroutine
def run_in_contexts(work: Coroutine[Any, Any, Result], context: Callable[[], AbstractContextManager]) -> Generator:
    """Run each step of `work` in a context of its own, so that no other coroutine runs inside it."""
    value, error = None, None
    while True:
        with context():
            try:
                awaited = work.send(value) if error is None else work.throw(error)
            except StopIteration as stop:
                return stop.value
        try:
            value, error = (yield awaited), None
        except BaseException as thrown:
            value, error = None, thrown
