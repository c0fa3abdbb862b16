"""Sizes that the model can take; known without torch, so that a wrong one is told at once."""

from __future__ import annotations

from ..errors import SettingError


def check_multiple(name: str, value: int, step: int) -> None:
    """Raise SettingError, naming the nearest good sizes, unless `value` is a positive multiple of `step`."""
    if value > 0 and value % step == 0:
        return
    below = max(step, value // step * step)
    near = f"{below} or {below + step}" if value > step else str(step)
    raise SettingError(f"{name} must be a multiple of {step}, got {value}; the nearest good sizes are {near}")
