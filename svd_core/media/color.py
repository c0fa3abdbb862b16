"""A picture file's numbers as colours in [0, 1]: whatever its mode, its depth and its inks."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..runtime.runtime import warn

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

DEEP_WHITE = 65535
"""White of 16-bit channels, and what ComfyUI takes it to be in 32-bit grey."""

_BLACK_POINT_COMPENSATION = 0x2000  # lcms2.h; with the relative intent what editors of photographs do


def write_colours(name: str, frame: Image.Image, out: np.ndarray) -> None:
    """The colours of an upright frame into `out` (H, W, 3) float32.

    Integer grey of more than 8 bits is taken as 0 to 65535, float grey as 0 to 1; CMYK is converted to sRGB by the
    profile in the file. Raises ImageError, with `name` for the file's, for grey of another scale and for Lab.
    """
    import numpy as np

    if frame.mode == "F":
        out[:] = _checked_grey(name, np.asarray(frame), 1.0)[..., None]
    elif frame.mode.startswith("I"):  # Pillow's own way to RGB clips at 255 and leaves white
        out[:] = _checked_grey(name, np.asarray(frame.convert("I"), np.float32), DEEP_WHITE)[..., None]
        out /= DEEP_WHITE
    else:
        np.divide(np.asarray(_in_rgb(name, frame)), np.float32(255), out=out, dtype=np.float32)


def transparency(frame: Image.Image) -> np.ndarray | None:
    """(H, W) float32, 1 where nothing is to be seen; None for a picture without an alpha channel.

    One transparent colour of a picture without a palette is no alpha channel: as in ComfyUI.
    """
    import numpy as np

    if not has_alpha(frame):
        return None
    if frame.mode == "P":
        frame = frame.convert("RGBA")
    return 1 - np.asarray(frame.getchannel("A"), np.float32) / 255


def has_alpha(frame: Image.Image) -> bool:
    """Whether a frame has an alpha channel, or a palette with transparent colours."""
    if frame.mode == "P":
        return "transparency" in frame.info
    return frame.mode != "LAB" and "A" in frame.getbands()


def note_ignored(name: str, picture: Image.Image) -> None:
    """Tell the user about a profile or gamma that says the colours are no sRGB. ComfyUI ignores them, and so do we:
    the same file is the same picture in both."""
    gamma = picture.info.get("gamma")
    if picture.mode != "CMYK" and (profile := picture.info.get("icc_profile")):
        described = _description(profile)
        if "srgb" not in described.lower():
            warn(
                "image.profile",
                f'{name} has the colour profile "{described}", which is ignored, as in ComfyUI; convert it to sRGB for '
                "true colours",
            )
    elif isinstance(gamma, (int, float)) and "srgb" not in picture.info and abs(gamma * 2.2 - 1) > 0.05:
        warn(
            "image.gamma",
            f"{name} says that its gamma is {gamma:g}, which is ignored, as in ComfyUI; convert it to sRGB for true "
            "colours",
        )


def _checked_grey(name: str, grey: np.ndarray, white: float) -> np.ndarray:
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= white):
        raise ImageError(
            f"{name} holds grey values from {low:g} to {high:g}, and such a picture must lie in 0 to {white:g}; scale "
            f"it, or save it with 8 or 16 bits.",
            code="image.range",
        )
    return grey


def _in_rgb(name: str, frame: Image.Image) -> Image.Image:
    """The frame with 8 bits in red, green and blue."""
    if frame.mode == "LAB":
        raise ImageError(f"{name} holds Lab colours; save it as RGB.", code="image.unsupported")
    if frame.mode != "CMYK":
        return frame.convert("RGB")
    profile = frame.info.get("icc_profile")
    converted = _by_profile(frame, profile) if profile else None
    if converted is None:
        held = "a profile that cannot be used" if profile else "no profile"
        warn(
            "image.inks",
            f"{name} holds inks (CMYK) with {held}, so its colours are a guess; convert it to sRGB for true ones",
        )
        return frame.convert("RGB")
    return converted


def _by_profile(frame: Image.Image, profile: bytes) -> Image.Image | None:
    from PIL import ImageCms

    try:
        return ImageCms.profileToProfile(
            frame,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=_BLACK_POINT_COMPENSATION,  # pyright: ignore[reportArgumentType]  # Flags came after Pillow 10.0
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


def _description(profile: bytes) -> str:
    from PIL import ImageCms

    try:
        described = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "unreadable"
    return "".join(letter for letter in described.strip()[:60] if letter.isprintable())
