"""Resizing as ComfyUI's ImageScale does it: torch's interpolation without antialiasing, or Pillow's Lanczos in 8 bits.

For the stages themselves `media.image_ops` has the reference's resizing; this one only keeps saved graphs' results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...svd_core.errors import ImageError, SettingError

if TYPE_CHECKING:
    import torch

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS = ("disabled", "center")
LARGEST_SIDE = 16384


def scale_images(images: torch.Tensor, method: str, width: int, height: int, crop: str) -> torch.Tensor:
    """images (B, H, W, C) -> (B, height, width, C), equal to ComfyUI's (comfy/utils.py, common_upscale).

    A width or height of 0 follows the other one; when both are 0 the images come back as they are. `center` cuts the
    longer side first. Raises SettingError for an unknown method, or when the cut would leave nothing.
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
        images = _cut_to_proportions(images, width, height)
    if method == "lanczos":
        return _lanczos_8_bit(images, width, height)
    resized = torch.nn.functional.interpolate(images.movedim(-1, 1), size=(height, width), mode=method)
    return resized.movedim(1, -1)


def scale_images_by(images: torch.Tensor, method: str, factor: float) -> torch.Tensor:
    """images (B, H, W, C) -> both sides times `factor`, rounded. Raises SettingError when nothing is left."""
    height, width = (round(side * factor) for side in images.shape[1:3])
    if not (height and width):
        raise SettingError(f"{images.shape[2]}x{images.shape[1]} times {factor:g} leaves nothing; use a larger factor")
    return scale_images(images, method, width, height, "disabled")


def _cut_to_proportions(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Cut the same number of pixels on both ends of the side that is too long for width / height."""
    old_height, old_width = images.shape[1:3]
    old_aspect, new_aspect = old_width / old_height, width / height
    left = top = 0
    if old_aspect > new_aspect:
        left = round((old_width - old_width * (new_aspect / old_aspect)) / 2)
    elif old_aspect < new_aspect:
        top = round((old_height - old_height * (old_aspect / new_aspect)) / 2)
    kept = images[:, top : old_height - top, left : old_width - left]
    if 0 in kept.shape:
        raise SettingError(
            f"cutting {old_width}x{old_height} to the proportions of {width}x{height} leaves nothing; "
            f"set crop to disabled, or choose a size nearer to the image's proportions."
        )
    return kept


def _lanczos_8_bit(images: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Each image by Pillow, its values cut (not rounded) to 8 bits first. Raises ImageError for NaN or infinity."""
    import numpy as np
    import torch
    from PIL import Image

    from ...svd_core.utils.nan_checks import is_finite

    if not is_finite(images):
        raise ImageError("the image holds NaN or infinite numbers; look at the node it comes from", code="image.nan")
    pixels = (images.detach().cpu().float() * 255).clamp(0, 255).to(torch.uint8).numpy()
    size = (width, height)
    resized = [Image.fromarray(each).resize(size, Image.Resampling.LANCZOS) for each in pixels]
    stacked = torch.from_numpy(np.stack([np.asarray(each, np.float32) / 255 for each in resized]))
    return stacked.to(images.device, images.dtype)
