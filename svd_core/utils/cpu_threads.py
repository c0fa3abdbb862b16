"""Divide the threads of a CPU between computations that do not depend on each other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

RunAll = Callable[[Sequence[Callable[[], torch.Tensor]]], list[torch.Tensor]]
"""Calls functions and returns their results in order."""


def run_in_order(functions: Sequence[Callable[[], torch.Tensor]]) -> list[torch.Tensor]:
    """Call functions one after the other."""
    return [function() for function in functions]


@contextlib.contextmanager
def divided_threads(parts: int) -> Iterator[RunAll]:
    """Yield a RunAll that calls up to `parts` functions at once, each with an equal part of torch's CPU threads.

    One function alone gets all threads.
    Small operations gain little from several threads, and threads that wait for each other lose much beside another
    busy process. With one part, or fewer threads than parts, the functions are called in order.

    torch keeps one of its numbers of threads for the whole process: other threads that begin to use torch meanwhile
    keep the divided number. Therefore it is only for processes that do nothing else.
    """
    threads = torch.get_num_threads()
    if not 1 < parts <= threads:
        yield run_in_order
        return
    with ThreadPoolExecutor(parts, "svd-stages-part") as pool:
        try:
            yield functools.partial(_run_at_once, pool, threads, threads // parts)
        finally:
            torch.set_num_threads(threads)  # of all libraries' numbers, some are the process's and not the thread's


def _run_at_once(
    pool: ThreadPoolExecutor, threads: int, share: int, functions: Sequence[Callable[[], torch.Tensor]]
) -> list[torch.Tensor]:
    if len(functions) == 1:
        torch.set_num_threads(threads)
        return [functions[0]()]
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # of this thread

    def run(function: Callable[[], torch.Tensor]) -> torch.Tensor:
        torch.set_num_threads(share)
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function()

    return list(pool.map(run, functions))
