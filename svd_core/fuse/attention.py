"""Which of torch's attention kernels to ask for."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

Context = Callable[[], contextlib.AbstractContextManager[Any]]

HOPPER = (9, 0)


def preferred(device: torch.device) -> Context:
    """The kernels to try first on a device for attention within a frame (thousands of tokens, heads of 64).

    On Hopper and later cuDNN's, then Flash: torch's own order has Flash first there, which is written for the cards
    before. Elsewhere torch's own choice. What a kernel cannot do, the next one does.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return contextlib.nullcontext
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if "set_priority" not in inspect.signature(sdpa_kernel).parameters:  # before torch 2.6
        return contextlib.nullcontext
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return lambda: sdpa_kernel(order, set_priority=True)
