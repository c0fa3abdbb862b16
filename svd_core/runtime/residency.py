"""Modules that stay on a GPU between stages, until another one needs the memory. One list for the process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

After = Literal["default", "keep", "offload"]
"""Where the weights of a component are after the work: as the runtime prefers, on the device, or off it."""

_idle: list[weakref.ref[torch.nn.Module]] = []
"""Least recently used first. Modules in use are not in it."""


def keep(module: torch.nn.Module) -> None:
    """Leave a module on its device until it is needed again or `make_room` moves it to the CPU."""
    take(module)
    _idle.append(weakref.ref(module))


def take(module: torch.nn.Module) -> None:
    """Protect a module from `make_room`."""
    _idle[:] = [each for each in _idle if each() not in (None, module)]


def is_idle(module: torch.nn.Module) -> bool:
    """Return True if a module was left on its device by `keep`."""
    return any(each() is module for each in _idle)


def idle_bytes(device: torch.device) -> int:
    """Return the bytes on a device that `make_room` could free."""
    return sum(weight_bytes(module, device) for module in _idle_on(device))


def make_room(device: torch.device, need: float, free: Callable[[], int]) -> None:
    """Move modules that are not in use to the CPU, the least recently used first, until free() is at least `need`."""
    for module in _idle_on(device):
        if free() >= need:
            return
        take(module)
        module.to("cpu")


def weight_bytes(module: torch.nn.Module, device: torch.device) -> int:
    """Return the bytes of a module's weights on a device. One without a number is every device of its type."""
    return sum(weight.nbytes for weight in module.parameters() if _is_on(weight.device, device))


def _is_on(place: torch.device, device: torch.device) -> bool:
    return place.type == device.type and device.index in (None, place.index)


def _idle_on(device: torch.device) -> list[torch.nn.Module]:
    modules = (each() for each in _idle)
    return [module for module in modules if module is not None and weight_bytes(module, device)]
