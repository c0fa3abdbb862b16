"""Check image sizes without importing torch, so that errors appear at once."""

from __future__ import annotations

from ..errors import SettingError


def check_multiple(name: str, value: int, step: int) -> None:
    """Raise SettingError with the nearest valid sizes unless `value` is a positive multiple of `step`."""
    if value > 0 and value % step == 0:
        return
    below = max(step, value // step * step)
    nearest = f"{below} or {below + step}" if value > step else str(step)
    raise SettingError(f"`{name}` must be a multiple of {step}, got {value}. Use {nearest}.")
