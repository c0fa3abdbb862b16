"""Group norm with SiLU on channels-last activations by Triton kernels, on CUDA devices where they prove to work.

PyTorch's group norm of channels-last activations on a GPU copies them to another memory format (pytorch 111824). These
kernels read each element twice and write it once. The kernels are two operators of torch, so that torch.compile takes
them as they are and their cost can be counted on the meta device, on which they compute nothing.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch.nn import functional as F

logger = logging.getLogger(__name__)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PROBED_SHAPE = (2, 96, 13, 7)
"""An image that fills no block of the kernels."""
PROBED_GROUPS = 32
TOLERANCE = 1e-5
"""Largest difference to PyTorch's result on the probed image, relative to its largest number, in float32. In 16 bits
two units of the dtype's precision: PyTorch rounds twice, these kernels once."""

NAMESPACE = re.sub(r"\W", "_", __name__)
"""Namespace of the operators. Each copy of the package in a process has its own."""

_available: dict[torch.device, bool] = {}


def is_available(device: torch.device) -> bool:
    """Return True if the kernels compute on a device what PyTorch does. Tried once per device.

    The meta device counts as one where they do.
    """
    if device not in _available:
        reason = _failure(device) if device.type != "meta" else None
        if reason is not None and device.type == "cuda":
            logger.info("group norm on %s: PyTorch's kernels, as Triton's cannot be used: %s", device, reason)
        _available[device] = reason is None
    return _available[device]


def _failure(device: torch.device) -> str | None:
    """Return why the kernels cannot be used on a device, None if they can."""
    if device.type != "cuda":
        return "not a CUDA device"
    try:
        for dtype in DTYPES:
            error = _probe(device, dtype)
            if not error <= max(TOLERANCE, 2 * torch.finfo(dtype).eps):
                return f"the result differs by {error:.1e} in {dtype}"
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # compilers, drivers and an absent Triton raise what they like; PyTorch's path remains
        lines = str(error).strip().splitlines() or ["no reason given"]
        return f"{type(error).__name__}: {lines[0][:160]}"
    return None


def _probe(device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest difference of a small group norm with SiLU to PyTorch's, relative to its largest number."""
    channels, size = PROBED_SHAPE[1], torch.Size(PROBED_SHAPE).numel()
    numbers = torch.arange(size, device=device).sin().to(dtype)  # no generator is drawn from
    x = numbers.reshape(PROBED_SHAPE).contiguous(memory_format=torch.channels_last)
    weight, bias = numbers[:channels] + 1, numbers[channels : 2 * channels]
    ours = _operators().normalize(x, _operators().moments(x, PROBED_GROUPS), weight, bias, 1e-5, True)
    theirs = F.silu(F.group_norm(x.contiguous(), PROBED_GROUPS, weight, bias, 1e-5)).float()
    return ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()


def serves(x: torch.Tensor) -> bool:
    """Return True if the kernels are used for x (N, C, H, W): on its device, for its dtype, in channels-last format."""
    is_supported = x.dtype in DTYPES and x.is_contiguous(memory_format=torch.channels_last)
    return is_supported and is_available(x.device)


def group_norm(x: torch.Tensor, norm: Any, silu: bool) -> torch.Tensor:
    """Apply a group norm, and SiLU if wanted, to x (N, C, H, W) in channels-last format. x stays unchanged."""
    return normalize(x, moments(x, norm.num_groups), norm, silu)


def moments(x: torch.Tensor, groups: int, before: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the moments of the channel groups of x (N, C, H, W): (N, 3, G) float32.

    They are the number of elements, their mean, and the sum of their squared deviations from it, accumulated in
    float32. Those of `before`, of the same shape, are included: a tensor can be processed in parts.
    """
    return _operators().moments(x.contiguous(memory_format=torch.channels_last), groups, before)


def normalize(x: torch.Tensor, moments: torch.Tensor, norm: Any, silu: bool) -> torch.Tensor:
    """Apply a group norm with given moments (N, 3, G), and SiLU if wanted, to x (N, C, H, W), rounded once."""
    x = x.contiguous(memory_format=torch.channels_last)
    return _operators().normalize(x, moments, norm.weight, norm.bias, norm.eps, silu)


def _operators() -> Any:
    return getattr(torch.ops, NAMESPACE)


def _moments(x: torch.Tensor, groups: int, before: torch.Tensor | None = None) -> torch.Tensor:
    from .triton_kernels import compute_moments

    return compute_moments(x, groups, before)


def _normalize(
    x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, silu: bool
) -> torch.Tensor:
    from .triton_kernels import normalize

    return normalize(x, moments, weight, bias, eps, silu)


def _empty_moments(x: torch.Tensor, groups: int, before: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty((x.shape[0], 3, groups), dtype=torch.float32)


def _empty_like(
    x: torch.Tensor, moments: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, silu: bool
) -> torch.Tensor:
    return torch.empty_like(x)


def _define_operators() -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "DEF")
    library.define("moments(Tensor x, int groups, Tensor? before=None) -> Tensor")
    library.define("normalize(Tensor x, Tensor moments, Tensor weight, Tensor bias, float eps, bool silu) -> Tensor")
    for name, compute, without_values in (
        ("moments", _moments, _empty_moments),
        ("normalize", _normalize, _empty_like),
    ):
        for device in ("CUDA", "CPU"):  # the CPU computes in Triton's interpreter only
            library.impl(name, compute, device)
        torch.library.register_fake(f"{NAMESPACE}::{name}", without_values, lib=library)
    return library


_library = _define_operators()
"""Keeps the operators defined."""
