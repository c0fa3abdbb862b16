"""Which of torch's attention kernels to ask for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

Context = Callable[[], contextlib.AbstractContextManager[Any]]
"""Makes a context in which attention is computed. Always the same object for the same kernels: programs are made for
it."""

HOPPER = (9, 0)


def default_sdpa() -> contextlib.AbstractContextManager[Any]:
    """Whatever torch takes."""
    return contextlib.nullcontext()


def prefer_hopper_sdpa() -> contextlib.AbstractContextManager[Any]:
    """cuDNN's, then Flash, then the others: what a kernel cannot do, the next one does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


def preferred(device: torch.device) -> Context:
    """The kernels to try first on a device for attention within a frame (thousands of tokens, heads of 64).

    On Hopper and later cuDNN's: torch's own order has Flash first there, which is written for the cards before.
    Elsewhere, and with a torch that takes no order (before 2.6), torch's own choice.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return default_sdpa
    from torch.nn.attention import sdpa_kernel

    return prefer_hopper_sdpa if "set_priority" in inspect.signature(sdpa_kernel).parameters else default_sdpa
