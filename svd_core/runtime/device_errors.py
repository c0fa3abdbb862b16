"""Classify torch errors as memory shortage or device loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import DeviceLostError, MemoryBudgetError
from .runtime import Runtime

Result = TypeVar("Result")

_SHORTAGES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""Messages of torch's allocators for the CPU, MPS and others, and of CUDA and its libraries outside its allocator. On a
full GPU cuBLAS cannot be initialized."""
_NO_LOSS = ("no kernel image",)
"""torch was not built for this GPU. Another process fails as well."""


def is_memory_error(error: BaseException) -> bool:
    """Return True if the device or the machine ran out of memory."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(each in str(error) for each in _SHORTAGES)


def is_device_lost(error: BaseException) -> bool:
    """Return True if the CUDA context is broken for the rest of this process.

    Many errors of CUDA concern one call only, such as `invalid configuration argument`. A broken context fails at the
    next kernel as well.
    """
    accelerators = getattr(torch, "AcceleratorError", ())  # since torch 2.8
    if is_memory_error(error) or any(each in str(error) for each in _NO_LOSS):
        return False
    is_accelerator_error = bool(accelerators) and isinstance(error, accelerators)
    is_from_device = is_accelerator_error or (isinstance(error, RuntimeError) and "CUDA error" in str(error))
    return is_from_device and not _devices_compute()


def _devices_compute() -> bool:
    """Return True if every GPU on which this process has memory still runs a kernel of one element, or is full."""
    if not torch.cuda.is_available():
        return False
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(index):
                torch.ones(1, device=torch.device("cuda", index)).neg_()
                torch.cuda.synchronize(index)
    except RuntimeError as error:
        return is_memory_error(error)
    return True


def translate_device_errors(runtime: Runtime, run: Callable[[], Result], describe_need: Callable[[], str]) -> Result:
    """Call `run` and convert torch's errors to this package's errors.

    Args:
        runtime: Frees cached memory before the error is raised.
        run: The work.
        describe_need: Returns the required memory, the available memory and a fix. Called only on a shortage.

    Raises:
        MemoryBudgetError: Memory ran out (code `memory.exhausted`). No tensor of `run` is referenced any more.
        DeviceLostError: The device is unusable in this process.
    """
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if is_device_lost(error):
            raise DeviceLostError(
                f"the device broke down ({reason[:200]}) and computes nothing more in this process. Start the program "
                "again; when it happens again, look at the card's temperature, power and driver"
            ) from error
        if not is_memory_error(error):
            raise
    # Outside of `except`: the caught error references the tensors of `run`; the new one must not.
    runtime.release()
    raise MemoryBudgetError(f"out of memory: {describe_need()} ({reason[:200]})", code="memory.exhausted")
