"""Layers that are faster on a CPU in bfloat16, with the results of torch's own.

With `layers_for_cpu`, a training step of the decoder takes half the time on one core with AVX512-BF16, and with
`channels_last_weights` the encoder takes three quarters. In float32 the results differ by rounding only.
"""

# The model classes declare their submodules as plain modules and their outputs as unions: a type checker cannot follow.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from ...svd_core.models.layers import to_channels_last

MIN_CHANNELS = 32
"""Convolutions with fewer channels are computed in float32: in bfloat16, torch 2.13 on CPUs sometimes returns
uninitialized gradients of small Conv3d weights."""


@contextlib.contextmanager
def layers_for_cpu(module: torch.nn.Module) -> Iterator[None]:
    """Compute the Conv3d and GroupNorm layers of `module` by these functions inside the `with`, if it is on a CPU."""
    replaced: list[tuple[torch.nn.Module, str]] = []
    for each in module.modules() if next(module.parameters()).device.type == "cpu" else ():
        if isinstance(each, torch.nn.Conv3d):
            each._conv_forward = functools.partial(_temporal_conv, each)
            replaced.append((each, "_conv_forward"))
        elif isinstance(each, torch.nn.GroupNorm):
            each.forward = functools.partial(_contiguous_norm, each)
            replaced.append((each, "forward"))
    try:
        yield
    finally:
        for each, name in replaced:
            delattr(each, name)


def _temporal_conv(
    conv: torch.nn.Conv3d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Compute a convolution along frames as Conv2d, whose kernels are faster."""
    assert weight.shape[3:] == (1, 1)
    frames, height, width = x.shape[2:]
    enabled = torch.is_autocast_enabled(x.device.type) and weight.shape[0] >= MIN_CHANNELS
    with torch.autocast(x.device.type, torch.bfloat16, enabled=enabled):
        flat = x.reshape(*x.shape[:2], frames, height * width)
        flat = flat if enabled else flat.float()
        convolved = torch.nn.functional.conv2d(flat, weight[..., 0], bias, padding=(conv.padding[0], 0))
    return convolved.unflatten(-1, (height, width))


def _contiguous_norm(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalize a contiguous copy: the backward pass is about 15 times slower for channels_last."""
    return torch.nn.functional.group_norm(x.contiguous(), norm.num_groups, norm.weight, norm.bias, norm.eps)


@contextlib.contextmanager
def channels_last_weights(module: torch.nn.Module) -> Iterator[None]:
    """Keep the weights of convolutions in channels-last memory format inside the `with`, if `module` is on a CPU."""
    is_cpu = next(module.parameters()).device.type == "cpu"
    if is_cpu:
        to_channels_last(module)
    try:
        yield
    finally:
        for each in module.parameters() if is_cpu else ():
            each.data = each.data.contiguous()
