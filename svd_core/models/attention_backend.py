"""Select the kernels of torch's scaled_dot_product_attention (SDPA)."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F

logger = logging.getLogger(__name__)

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


def choose_sdpa(device: torch.device, dtype: torch.dtype, shapes: Iterable[tuple[int, int, int]]) -> SdpaContext:
    """Choose the backends for spatial attention on a device, with `shapes` of (heads, tokens, channels per head).

    From Hopper on cuDNN comes first: torch's own order prefers Flash, which is tuned for older GPUs. Other devices, and
    torch before 2.6, which takes no order, use torch's choice. So do shapes on which cuDNN fails.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return default_sdpa
    from torch.nn.attention import sdpa_kernel

    takes_order = "set_priority" in inspect.signature(sdpa_kernel).parameters
    if takes_order and all(_computes(device, dtype, *shape) for shape in shapes):
        return prefer_hopper_sdpa
    return default_sdpa


@functools.cache
def _computes(device: torch.device, dtype: torch.dtype, heads: int, tokens: int, width: int) -> bool:
    """Return True if `prefer_hopper_sdpa` computes a shape. cuDNN accepts some for which it then has no kernel."""
    rows = torch.zeros((1, tokens, 3, heads, width), device=device, dtype=dtype)
    query, key, value = rows.permute(2, 0, 3, 1, 4).unbind(0)
    try:
        with prefer_hopper_sdpa():
            F.scaled_dot_product_attention(query, key, value)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        logger.info("attention: torch's own choice of kernels, as cuDNN fails for %d tokens: %s", tokens, error)
        return False
    return True
