"""Weights in float32 for a while, and the very same ones as before afterwards, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

ParameterSlot = tuple[dict[str, Any], str, torch.Tensor]
"""Where a module keeps a weight, its name there, and the weight."""


@contextlib.contextmanager
def in_float32(*modules: torch.nn.Module) -> Iterator[None]:
    """Have the floating-point weights of `modules` in float32 inside the `with`.

    Their own are held meanwhile and put back, not converted back: that needs no memory, which may be what has run out,
    keeps their layout, and keeps what is mapped from a file mapped.
    """
    held = list(_weights(modules))
    try:
        for place, name, weight in held:
            number = weight.detach().float()
            is_parameter = isinstance(weight, torch.nn.Parameter)
            place[name] = torch.nn.Parameter(number, requires_grad=False) if is_parameter else number
        yield
    finally:
        for place, name, weight in held:
            place[name] = weight


def float32_bytes(*modules: torch.nn.Module) -> int:
    """Bytes that `in_float32` takes: none for weights that are in float32."""
    return sum(4 * weight.numel() for *_, weight in _weights(modules) if weight.dtype != torch.float32)


def _weights(modules: tuple[torch.nn.Module, ...]) -> Iterator[ParameterSlot]:
    for module in modules:
        for owner in module.modules():
            for place in (owner._parameters, owner._buffers):
                for name, weight in place.items():
                    if weight is not None and weight.is_floating_point():
                        yield place, name, weight
