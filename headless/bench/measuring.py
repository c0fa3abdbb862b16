"""Measure several variants of a computation in turns, so that a disturbance affects all of them."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException

from ...svd_core.errors import SVDStagesError

logger = logging.getLogger(__name__)

Variant = Callable[[], torch.Tensor]
"""One implementation of a computation."""

Value = TypeVar("Value")

LEAST_TURNS = 3
SETTLED = 0.05
"""No more turns follow when, for each variant, the largest ratio of a turn exceeds the smallest by this share."""


@dataclass(frozen=True)
class Result:
    """Measurements of one variant.

    Attributes:
        seconds: Median of all turns.
        first: Seconds of the first call, which may compile.
        spread: (largest - smallest) / median.
        turns: Timed calls.
        faster: Median over the turns of the first variant's seconds / this one's.
        faster_least: The smallest of these ratios.
        faster_most: The largest of these ratios.
        peak: Bytes of device memory allocated by the first call. None on a device that does not count them.
        error: |result - reference| / |reference|.
    """

    seconds: float
    first: float
    spread: float
    turns: int
    faster: float
    faster_least: float
    faster_most: float
    peak: int | None
    error: float


@dataclass(frozen=True)
class Timing:
    """The time of one computation.

    Attributes:
        seconds: Median of all turns, of one call.
        first: Seconds of the first call.
        spread: (largest - smallest) / median.
        turns: Timed turns.
        calls: Calls of a turn.
        peak: As in `Result`.
    """

    seconds: float
    first: float
    spread: float
    turns: int
    calls: int
    peak: int | None


LEAST_SECONDS = 0.02
"""Seconds of a turn of `repeat`. Shorter computations are called several times."""
MOST_CALLS = 100

FAILURES = (RuntimeError, MemoryError, SVDStagesError, TorchDynamoException)
"""Errors of a variant: a device's, memory that runs out, a compiler's."""


OnFailure = Callable[[str, Exception], None]
"""Called with the name of a variant and its error. What it raises ends the measurement."""


def warn_left_out(name: str, error: Exception) -> None:
    """Log a warning: the variant is left out."""
    logger.warning("%s is left out: %s", name, first_line(error))


def measure(
    variants: dict[str, Variant],
    reference: torch.Tensor | None,
    device: torch.device,
    turns: int,
    on_call: Callable[[], None] = lambda: None,
    on_failure: OnFailure = warn_left_out,
) -> dict[str, Result]:
    """Run each variant once to warm up, then each once per turn, until the ratios of their times settle.

    A variant that fails, as it does not fit into the device's memory or cannot be compiled, is left out.

    Args:
        variants: By name. Times are compared with those of the first that runs.
        reference: The exact result, float64 on the CPU. None: that of the first variant that runs.
        device: The computing device.
        turns: Most timed calls per variant.
        on_call: Called after each call. Its exceptions end the measurement.
        on_failure: Called with the error of a variant that is left out.

    Raises:
        RuntimeError, SVDStagesError: The first variant fails in a turn.
    """
    errors, peaks, firsts = {}, {}, {}
    for name, variant in variants.items():
        allocated = _reset_peak(device)
        try:
            firsts[name], result = timed(variant, device)
        except FAILURES as error:
            on_failure(name, error)
            continue
        peaks[name] = _peak_since(device, allocated)
        reference = result.double().cpu() if reference is None else reference
        errors[name] = relative_difference(result, reference)
        on_call()
        del result
    times: dict[str, list[float]] = {name: [] for name in firsts}
    ratios: dict[str, list[float]] = {name: [] for name in firsts}
    for _ in range(turns):
        turn: dict[str, float] = {}
        for name in list(times):
            try:
                turn[name] = timed(variants[name], device)[0]
            except FAILURES as error:
                on_failure(name, error)
                if not turn:  # the others are compared with it
                    raise
                del times[name], ratios[name]
                continue
            times[name].append(turn[name])
            ratios[name].append(next(iter(turn.values())) / turn[name])
            on_call()
        if all(map(_is_settled, ratios.values())):
            break
    return {
        name: _result(seconds, ratios[name], firsts[name], peaks[name], errors[name]) for name, seconds in times.items()
    }


def repeat(variant: Callable[[], object], device: torch.device, turns: int) -> Timing:
    """Call a computation once to warm up, then in each turn so often that the turn can be timed.

    Args:
        variant: The computation. Its errors are raised.
        device: The computing device.
        turns: Timed turns, at least 1. Of a computation that takes more than a second at most LEAST_TURNS.
    """
    allocated = _reset_peak(device)
    first, _ = timed(variant, device)
    peak = _peak_since(device, allocated)
    again = first if first > 1 else timed(variant, device)[0]
    calls = max(1, min(MOST_CALLS, round(LEAST_SECONDS / max(again, 1e-9))))

    def turn() -> None:
        for _ in range(calls):
            variant()

    seconds = [timed(turn, device)[0] / calls for _ in range(turns if again <= 1 else min(turns, LEAST_TURNS))]
    return Timing(statistics.median(seconds), first, _spread(seconds), len(seconds), calls, peak)


def _result(seconds: list[float], ratios: list[float], first: float, peak: int | None, error: float) -> Result:
    return Result(
        seconds=statistics.median(seconds),
        first=first,
        spread=_spread(seconds),
        turns=len(seconds),
        faster=statistics.median(ratios),
        faster_least=min(ratios),
        faster_most=max(ratios),
        peak=peak,
        error=error,
    )


def relative_difference(result: torch.Tensor, truth: torch.Tensor) -> float:
    """Return |result - truth| / |truth|, computed in float64 on the CPU."""
    truth = truth.double().cpu()
    return ((result.double().cpu() - truth).norm() / truth.norm()).item()


def _spread(seconds: list[float]) -> float:
    return (max(seconds) - min(seconds)) / statistics.median(seconds)


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else 'no reason'}"


def _is_settled(ratios: list[float]) -> bool:
    return len(ratios) >= LEAST_TURNS and max(ratios) <= (1 + SETTLED) * min(ratios)


def timed(variant: Callable[[], Value], device: torch.device) -> tuple[float, Value]:
    """Return the seconds of a call, on CUDA by events of the device, and its result."""
    _synchronize(device)
    if device.type == "cuda":
        return _timed_by_events(variant, torch.cuda.current_stream(device))
    start = time.perf_counter()
    result = variant()
    _synchronize(device)
    return time.perf_counter() - start, result


def _timed_by_events(variant: Callable[[], Value], stream: torch.cuda.Stream) -> tuple[float, Value]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    result = variant()
    end.record(stream)
    torch.cuda.synchronize(stream.device)
    return start.elapsed_time(end) / 1000, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _reset_peak(device: torch.device) -> int:
    """Start a new measurement of the peak memory and return the bytes that are allocated now."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak_since(device: torch.device, allocated: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - allocated if device.type == "cuda" else None
