"""What a stranger handed in as numbers: checked for what it is, before anybody computes with it."""

from __future__ import annotations

import torch

from ..errors import ImageError, SettingError


def plain(given: object, what: str, error: type[SettingError] | type[ImageError] = SettingError) -> torch.Tensor:
    """The tensor `given` as float32 on the CPU, without its history of gradients; the same memory where it was so.

    Raises `error`, in which `what` is its name ("an image"), for what is no tensor, for numbers without a fraction or
    with an imaginary part, for sparse and nested tensors, and for device "meta", which holds no numbers.
    """
    if not isinstance(given, torch.Tensor):
        raise error(f"{what} must be a tensor, got {type(given).__name__}; connect what makes one")
    if given.is_nested or given.layout != torch.strided:
        raise error(f"{what} must be one dense tensor, got a {'nested' if given.is_nested else 'sparse'} one")
    if not given.is_floating_point():
        raise error(f"{what} must be in floating point, got {given.dtype} {tuple(given.shape)}; convert it first")
    if given.device.type == "meta":
        raise error(f'{what} lies on the device "meta", which holds no numbers; load or compute it on another one')
    return given.detach().to("cpu", torch.float32)
