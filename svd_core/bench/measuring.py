"""Measuring several ways to do the same thing in one run, in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

Way = Callable[[], torch.Tensor]
"""One way to do a thing; its result is compared with the others'."""


@dataclass(frozen=True)
class Result:
    """Of one way.

    seconds  the median of all turns
    spread   (largest - smallest) / median
    peak     bytes of the device's memory beyond what was there before; None on a device that does not count them
    error    |result - reference| / |reference|
    """

    seconds: float
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
    errors, peaks = {}, {}
    for name, way in list(ways.items()):
        before = _start_counting(device)
        try:
            result = way()
        except torch.cuda.OutOfMemoryError:
            logger.warning("%s does not fit into the device's memory", name)
            ways = {other: each for other, each in ways.items() if other != name}
            continue
        peaks[name] = _peak(device, before)
        errors[name] = ((result.double().cpu() - reference).norm() / reference.norm()).item()
        on_call()
        del result
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            _finish(device)
            began = time.perf_counter()
            way()
            _finish(device)
            times[name].append(time.perf_counter() - began)
            on_call()
    return {name: Result(*_middle(times[name]), peaks[name], errors[name]) for name in ways}


def _middle(times: list[float]) -> tuple[float, float]:
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


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
