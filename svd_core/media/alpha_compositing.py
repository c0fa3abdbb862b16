"""What the transparent parts of a picture become: nothing, as in ComfyUI, or a colour.

A file may hide any colour under full transparency, often black or rubbish, and a video has no transparency to hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ..errors import SettingError

if TYPE_CHECKING:
    import torch

Colour = tuple[float, float, float]
Background: TypeAlias = Colour | Literal["keep"]
"""A colour in [0, 1], or "keep": the colours that the file has under its transparency, as ComfyUI's LoadImage."""

KEEP: Literal["keep"] = "keep"
GREY = 0.5
"""What `animate` puts pictures on: as far from black as from white."""


def read_background(given: str | float | Sequence[float]) -> Background:
    """A background as a person says it: "keep", a grey level from 0 to 1, three of them, or "white", "#336699", ...

    Names are those of CSS, as Pillow's ImageColor knows them. Raises SettingError for anything else.
    """
    from PIL import ImageColor

    if isinstance(given, str):
        if given == KEEP:
            return KEEP
        try:
            given = float(given)
        except ValueError:
            try:
                red, green, blue, *_ = ImageColor.getrgb(given)
            except ValueError as error:
                raise _no_background(given) from error
            given = (red / 255, green / 255, blue / 255)
    levels: list[Any] = list(given) if isinstance(given, Sequence) else [given] * 3
    if len(levels) != 3 or not all(_is_number(level) and 0 <= level <= 1 for level in levels):
        raise _no_background(given)
    return (float(levels[0]), float(levels[1]), float(levels[2]))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _no_background(given: object) -> SettingError:
    return SettingError(
        f'the background is "keep", a grey level from 0 to 1, or a colour such as white or #336699; got {given!r}',
        code="setting.background",
    )


def composite(images: torch.Tensor, mask: torch.Tensor, background: Background) -> torch.Tensor:
    """Images (B, H, W, 3) in [0, 1] on a colour where mask (B, H, W) says that they are transparent (1: nothing shows).

    In float32 and in the values as they are stored, as browsers do: colour * (1 - mask) + background * mask. With
    "keep" the images themselves.
    """
    if background == KEEP:
        return images
    over = mask[..., None]
    return images * (1 - over) + images.new_tensor(background) * over


def format_color(background: Background) -> str:
    """For messages: "grey 0.5", "#336699"."""
    red, green, blue = (0.0, 0.0, 0.0) if background == KEEP else background
    if red == green == blue:
        return f"grey {red:g}"
    return "#" + "".join(f"{round(level * 255):02x}" for level in (red, green, blue))
