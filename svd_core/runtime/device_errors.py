"""What an error of a stage's work means: memory has run out, or the device is gone for this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import DeviceLostError, MemoryBudgetError
from .runtime import Runtime

Result = TypeVar("Result")

_SHORTAGES = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
"""How torch's allocators for the CPU, MPS and others, and CUDA outside its allocator, say it."""
_NO_LOSS = ("no kernel image",)
"""A torch that was not built for the card. No other process will fare better."""


def is_shortage(error: BaseException) -> bool:
    """Whether memory has run out, of a device or of the machine."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _SHORTAGES)


def is_device_loss(error: BaseException) -> bool:
    """Whether CUDA said that its context is broken, which no later call in this process mends."""
    accelerators = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    if is_shortage(error) or any(each in str(error) for each in _NO_LOSS):
        return False
    is_accelerators = bool(accelerators) and isinstance(error, accelerators)
    return is_accelerators or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def translate_device_errors(runtime: Runtime, work: Callable[[], Result], told: Callable[[], str]) -> Result:
    """What `work` gives.

    told  what the work needs, what there is, and the way out; asked when memory has run out

    Raises MemoryBudgetError (`memory.exhausted`) when memory runs out, with nothing of the work held by it;
    DeviceLostError when the device is gone.
    """
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if is_device_loss(error):
            raise DeviceLostError(
                f"the device broke down ({reason[:200]}) and computes nothing more in this process. Start the program "
                "again; when it happens again, look at the card's temperature, power and driver"
            ) from error
        if not is_shortage(error):
            raise
    # Outside of `except`: what the work had in memory hangs on its error, and must not hang on the next.
    runtime.release()
    raise MemoryBudgetError(f"memory has run out: {told()} ({reason[:200]})", code="memory.exhausted")
