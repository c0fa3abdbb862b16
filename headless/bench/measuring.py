"""Measuring several ways to do the same thing in one run, in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch._dynamo.exc import TorchDynamoException

logger = logging.getLogger(__name__)

Way = Callable[[], torch.Tensor]
"""One way to do a thing; its result is compared with the others'."""


@dataclass(frozen=True)
class Result:
    """Of one way.

    seconds  the median of all turns
    first    of the first call, which may compile
    spread   (largest - smallest) / median
    peak     bytes of the device's memory beyond what was there before; None on a device that does not count them
    error    |result - reference| / |reference|
    """

    seconds: float
    first: float
    spread: float
    peak: int | None
    error: float


def measure(
    ways: dict[str, Way],
    reference: torch.Tensor,
    device: torch.device,
    turns: int,
    on_call: Callable[[], None] = lambda: None,
) -> dict[str, Result]:
    """Run each way once to warm up, then all of them `turns` times, one after the other in each turn.

    One that does not fit into the device's memory drops out, with a warning.

    reference  what all results are compared with, float64 on the CPU
    on_call    called after each call; what it raises ends the measurement
    """
    errors, peaks, firsts = {}, {}, {}
    for name, way in list(ways.items()):
        before = _start_counting(device)
        try:
            firsts[name], result = _timed(way, device)
        except (torch.cuda.OutOfMemoryError, TorchDynamoException) as error:
            compiling = isinstance(error, TorchDynamoException)
            logger.warning(
                "%s %s", name, "cannot be compiled here" if compiling else "does not fit into the device's memory"
            )
            ways = {other: each for other, each in ways.items() if other != name}
            continue
        peaks[name] = _peak(device, before)
        errors[name] = ((result.double().cpu() - reference).norm() / reference.norm()).item()
        on_call()
        del result
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            times[name].append(_timed(way, device)[0])
            on_call()
    return {
        name: Result(
            seconds=statistics.median(times[name]),
            first=firsts[name],
            spread=(max(times[name]) - min(times[name])) / statistics.median(times[name]),
            peak=peaks[name],
            error=errors[name],
        )
        for name in ways
    }


def _timed(way: Way, device: torch.device) -> tuple[float, torch.Tensor]:
    _finish(device)
    began = time.perf_counter()
    result = way()
    _finish(device)
    return time.perf_counter() - began, result


def _finish(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _start_counting(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
