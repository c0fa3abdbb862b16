"""Composite transparent images on a background color, or keep the colors under transparent pixels as ComfyUI does.

A file may store any color under transparent pixels, often black or noise. A video cannot be transparent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import SettingError

if TYPE_CHECKING:
    import torch

Color = tuple[float, float, float]
Background: TypeAlias = Color | Literal["keep"]
"""An RGB color in [0, 1], or "keep": the colors that the file stores under transparent pixels, as in LoadImage."""

KEEP: Literal["keep"] = "keep"
GREY = 0.5
"""Background of `animate`: equally far from black and white."""


def read_background(value: str | float | Sequence[float]) -> Background:
    """Parse a background: "keep", a grey level in [0, 1], three levels, or a CSS color such as "white" or "#336699".

    Raises:
        SettingError: Anything else (code `setting.background`).
    """
    levels: Any = value
    if isinstance(value, str):
        if value == KEEP:
            return KEEP
        try:
            levels = float(value)
        except ValueError:
            levels = _css_color(value)
    levels = list(levels) if isinstance(levels, Sequence) else [levels] * 3
    if len(levels) != 3 or not all(_is_number(level) and 0 <= level <= 1 for level in levels):
        raise _background_error(value)
    return (float(levels[0]), float(levels[1]), float(levels[2]))


def _css_color(name: str) -> Color:
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(name)
    except ValueError as error:
        raise _background_error(name) from error
    return (red / 255, green / 255, blue / 255)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _background_error(value: object) -> SettingError:
    return SettingError(
        f'`background` must be "keep", a grey level from 0 to 1, or a color such as white or #336699, got {value!r}.',
        code="setting.background",
    )


def composite(images: torch.Tensor, mask: torch.Tensor, background: Background) -> torch.Tensor:
    """Return images * (1 - mask) + background * mask; the images unchanged for "keep".

    Computed in float32 on the stored (gamma-encoded) values, as browsers do.

    Args:
        images: (B, H, W, 3) in [0, 1].
        mask: (B, H, W) in [0, 1], 1 where the image is transparent.
        background: The color.
    """
    if background == KEEP:
        return images
    transparency = mask[..., None]
    return images * (1 - transparency) + images.new_tensor(background) * transparency


def format_color(background: Background) -> str:
    """Format a color for messages: "grey 0.5", "#336699"."""
    red, green, blue = (0.0, 0.0, 0.0) if background == KEEP else background
    if red == green == blue:
        return f"grey {red:g}"
    return "#" + "".join(f"{round(level * 255):02x}" for level in (red, green, blue))
