"""Select the kernels of torch's scaled_dot_product_attention (SDPA)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

SdpaContext = Callable[[], contextlib.AbstractContextManager[Any]]
"""Returns a context manager that selects SDPA backends. Compiled functions are cached by this object: it is always the
same for one selection."""

HOPPER = (9, 0)
"""CUDA compute capability of the first GPUs on which cuDNN's attention is the fastest."""


def default_sdpa() -> contextlib.AbstractContextManager[Any]:
    """Use torch's own order of backends."""
    return contextlib.nullcontext()


def prefer_hopper_sdpa() -> contextlib.AbstractContextManager[Any]:
    """Try cuDNN first, then Flash, memory-efficient and math attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


def choose_sdpa(device: torch.device) -> SdpaContext:
    """Choose the backends for spatial attention on a device: thousands of tokens, 64 channels per head.

    From Hopper on cuDNN comes first: torch's own order prefers Flash, which is tuned for older GPUs. Other devices, and
    torch before 2.6, which takes no order, use torch's choice.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return default_sdpa
    from torch.nn.attention import sdpa_kernel

    return prefer_hopper_sdpa if "set_priority" in inspect.signature(sdpa_kernel).parameters else default_sdpa
