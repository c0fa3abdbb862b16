"""Convert the pixels of a Pillow image to RGB in [0, 1], from any mode, bit depth or color space."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..utils.warnings import RunWarning

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

WHITE_16BIT = 65535
"""White of 16-bit channels. ComfyUI scales 32-bit integer grey by it too."""

_BLACK_POINT_COMPENSATION = 0x2000  # lcms2.h. Photo editors combine it with the relative colorimetric intent.


def write_colors(name: str, frame: Image.Image, out: np.ndarray) -> tuple[RunWarning, ...]:
    """Write the colors of an upright frame to `out`. Return the warnings.

    Integer grey of more than 8 bits is scaled from 0..65535, float grey from 0..1. CMYK is converted to sRGB with the
    profile of the file.

    Args:
        name: The file's name for messages.
        frame: The image in any mode of Pillow.
        out: (H, W, 3) float32, filled with values in [0, 1].

    Raises:
        ImageError: Grey values of another scale, or Lab colors.
    """
    import numpy as np

    if frame.mode == "F":
        out[:] = _check_grey(name, np.asarray(frame), 1.0)[..., None]
        return ()
    if frame.mode.startswith("I"):  # Pillow's conversion to RGB would clip at 255
        out[:] = _check_grey(name, np.asarray(frame.convert("I"), np.float32), WHITE_16BIT)[..., None]
        out /= WHITE_16BIT
        return ()
    if frame.mode == "LAB":
        raise ImageError(f"{name} has Lab colors, which are not supported. Save it as RGB.", code="image.unsupported")
    rgb = _cmyk_to_srgb(frame) if frame.mode == "CMYK" else frame.convert("RGB")
    run_warnings = ()
    if rgb is None:
        rgb = frame.convert("RGB")
        profile = "an unusable color profile" if frame.info.get("icc_profile") else "no color profile"
        text = f"{name} is CMYK with {profile}, so its colors are approximate. Convert it to sRGB for exact colors."
        run_warnings = (RunWarning("image.inks", text),)
    np.divide(np.asarray(rgb), np.float32(255), out=out, dtype=np.float32)
    return run_warnings


def transparency(frame: Image.Image) -> np.ndarray | None:
    """Return (H, W) float32, 1 where the frame is fully transparent, or None without an alpha channel.

    A single transparent color of an image without a palette is ignored, as in ComfyUI.
    """
    import numpy as np

    if not has_alpha(frame):
        return None
    if frame.mode == "P":
        frame = frame.convert("RGBA")
    return 1 - np.asarray(frame.getchannel("A"), np.float32) / 255


def has_alpha(frame: Image.Image) -> bool:
    """Return True if a frame has an alpha channel or a palette with transparent colors."""
    if frame.mode == "P":
        return "transparency" in frame.info
    return frame.mode != "LAB" and "A" in frame.getbands()


def color_space_warnings(name: str, image: Image.Image) -> tuple[RunWarning, ...]:
    """Return a warning if the file declares another color space than sRGB, which is ignored as in ComfyUI."""
    gamma = image.info.get("gamma")
    if image.mode != "CMYK" and (profile := image.info.get("icc_profile")):
        description = _profile_description(profile)
        if "srgb" not in description.lower():
            text = f'{name} has the color profile "{description}", which is ignored, as in ComfyUI.'
            return (RunWarning("image.profile", f"{text} Convert it to sRGB for exact colors."),)
    elif isinstance(gamma, (int, float)) and "srgb" not in image.info and abs(gamma * 2.2 - 1) > 0.05:
        text = f"{name} declares a gamma of {gamma:g}, which is ignored, as in ComfyUI."
        return (RunWarning("image.gamma", f"{text} Convert it to sRGB for exact colors."),)
    return ()


def _check_grey(name: str, grey: np.ndarray, white: float) -> np.ndarray:
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= white):
        raise ImageError(
            f"grey values of {name} must be in 0 to {white:g}, got {low:g} to {high:g}. Rescale it, or save it with 8 "
            "or 16 bits.",
            code="image.range",
        )
    return grey


def _cmyk_to_srgb(frame: Image.Image) -> Image.Image | None:
    """Convert CMYK to sRGB with the embedded profile. Return None if there is none or it is invalid."""
    from PIL import ImageCms

    profile = frame.info.get("icc_profile")
    if not profile:
        return None
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


def _profile_description(profile: bytes) -> str:
    from PIL import ImageCms

    try:
        description = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError):
        return "unreadable"
    return "".join(char for char in description.strip()[:60] if char.isprintable())
