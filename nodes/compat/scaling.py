"""Resizing equal to ComfyUI's ImageScale: torch's interpolation without antialiasing, or Pillow's Lanczos in 8 bits.

Only for graphs that use ImageScale. SVDResizeImage uses the reference's resizing, `svd_core.media.image_ops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...svd_core.errors import ImageError, SettingError
from ...svd_core.utils.nan_checks import is_finite

if TYPE_CHECKING:
    import torch

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS = ("disabled", "center")


def scale_images(images: torch.Tensor, method: str, width: int, height: int, crop: str) -> torch.Tensor:
    """Resize images (B, H, W, C) to (B, height, width, C) as ComfyUI does (comfy/utils.py, common_upscale).

    Args:
        images: Any floating-point values.
        method: One of METHODS.
        width: In pixels. 0 keeps the aspect ratio; if both sides are 0 the images are returned unchanged.
        height: In pixels, likewise.
        crop: One of CROPS. center crops the longer side first.

    Raises:
        SettingError: The method is unknown, or cropping leaves no pixels.
        ImageError: The method is lanczos and the images hold NaN or Inf.
    """
    import torch

    if method not in METHODS:
        raise SettingError(f'the method must be one of {", ".join(METHODS)}, got "{method}"')
    if width == 0 and height == 0:
        return images
    old_height, old_width = images.shape[1:3]
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    if crop == "center":
        images = _crop_to_aspect(images, width, height)
    if method == "lanczos":
        return _lanczos_8_bit(images, width, height)
    resized = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(height, width), mode=method)
    return resized.movedim(1, -1)


def scale_images_by(images: torch.Tensor, method: str, factor: float) -> torch.Tensor:
    """Resize images (B, H, W, C) by `factor`. Sides are rounded. Raises SettingError if no pixels are left."""
    height, width = (round(side * factor) for side in images.shape[1:3])
    if not (height and width):
        raise SettingError(
            f"{images.shape[2]}x{images.shape[1]} times {factor:g} leaves no pixels. Use a larger factor."
        )
    return scale_images(images, method, width, height, "disabled")


def _crop_to_aspect(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Crop both ends of the side that is too long for the aspect ratio width / height by the same number of pixels."""
    old_height, old_width = images.shape[1:3]
    old_aspect, new_aspect = old_width / old_height, width / height
    left = top = 0
    if old_aspect > new_aspect:
        left = round((old_width - old_width * (new_aspect / old_aspect)) / 2)
    elif old_aspect < new_aspect:
        top = round((old_height - old_height * (old_aspect / new_aspect)) / 2)
    cropped = images[:, top : old_height - top, left : old_width - left]
    if 0 in cropped.shape:
        raise SettingError(
            f"cropping {old_width}x{old_height} to the aspect ratio of {width}x{height} leaves no pixels. "
            f"Set crop to disabled, or choose a size with an aspect ratio nearer to the image's."
        )
    return cropped


def _lanczos_8_bit(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resize with Pillow after truncating to 8 bits. Raises ImageError for NaN or Inf."""
    import numpy as np
    import torch
    from PIL import Image

    if not is_finite(images):
        raise ImageError("the image holds NaN or Inf. Check the node that made it.", code="image.nan")
    pixels = (images.detach().cpu().float() * 255).clamp(0, 255).to(torch.uint8).numpy()
    size = (width, height)
    resized = [Image.fromarray(each).resize(size, Image.Resampling.LANCZOS) for each in pixels]
    stacked = torch.from_numpy(np.stack([np.asarray(each, np.float32) / 255 for each in resized]))
    return stacked.to(images.device, images.dtype)
