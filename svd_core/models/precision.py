"""Compute temporarily in float32. The original weights are restored unchanged, also after an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

ParameterSlot = tuple[dict[str, Any], str, torch.Tensor]
"""A module's dict of parameters or buffers, a name in it, and the tensor."""


def skip_none(module: torch.nn.Module) -> bool:
    """Return False: no module is skipped."""
    return False


@contextlib.contextmanager
def in_float32(*modules: torch.nn.Module, skip: Callable[[torch.nn.Module], bool] = skip_none) -> Iterator[None]:
    """Convert the floating-point weights of `modules` to float32 inside the `with`.

    The original tensors are kept and put back, not converted back. That needs no memory, keeps their memory format, and
    keeps memory-mapped weights mapped. The own weights of submodules for which `skip` returns True stay.
    """
    slots = list(_weight_slots(modules, skip))
    try:
        for tensors, name, weight in slots:
            converted = weight.detach().float()
            is_parameter = isinstance(weight, torch.nn.Parameter)
            tensors[name] = torch.nn.Parameter(converted, requires_grad=False) if is_parameter else converted
        yield
    finally:
        for tensors, name, weight in slots:
            tensors[name] = weight


def float32_bytes(*modules: torch.nn.Module, skip: Callable[[torch.nn.Module], bool] = skip_none) -> int:
    """Return the bytes that `in_float32` allocates: 0 for weights in float32."""
    return sum(4 * weight.numel() for *_, weight in _weight_slots(modules, skip) if weight.dtype != torch.float32)


def _weight_slots(
    modules: tuple[torch.nn.Module, ...], skip: Callable[[torch.nn.Module], bool]
) -> Iterator[ParameterSlot]:
    for root in modules:
        for module in root.modules():
            if skip(module):
                continue
            for tensors in (module._parameters, module._buffers):
                for name, weight in tensors.items():
                    if weight is not None and weight.is_floating_point():
                        yield tensors, name, weight
