"""Validate tensors that other nodes or programs made, before computing with them."""

from __future__ import annotations

import math

import torch

from ..errors import ImageError, SettingError

MIN_SIDE = 16
"""Pixels. Smaller images are too small to animate."""

MAX_ASPECT_RATIO = 8
"""Long side to short side. CLIP sees a square, and SVD was trained at 16:9."""

MAX_ABS_VALUE = 64.0
"""Noise augmentation of strength 10, the largest of the nodes, gives values up to 60 (six standard deviations)."""

MAX_MEAN = 4.0
"""Zero-mean noise keeps the mean near [0, 1]: within 1.5 at strength 10 and 16x16 pixels."""


def as_float32(value: object, name: str, error: type[SettingError] | type[ImageError] = SettingError) -> torch.Tensor:
    """Return a floating-point tensor as float32 on the CPU, detached. It may share memory with `value`.

    Args:
        value: What another node passed.
        name: Name of the value in error messages, for example "an image".
        error: Class of the error.

    Raises:
        error: `value` is not a dense floating-point tensor with data (sparse, nested and meta tensors are refused).
    """
    if not isinstance(value, torch.Tensor):
        raise error(f"{name} must be a tensor, got {type(value).__name__}. Connect an output of the right type.")
    if value.is_nested or value.layout != torch.strided:
        raise error(f"{name} must be one dense tensor, got a {'nested' if value.is_nested else 'sparse'} one.")
    if not value.is_floating_point():
        raise error(f"{name} must be in floating point, got {value.dtype} {tuple(value.shape)}. Convert it first.")
    if value.device.type == "meta":
        raise error(f'{name} is on the device "meta", which holds no data. Load or compute it on another device.')
    return value.detach().to("cpu", torch.float32)


def check_images(images: torch.Tensor) -> torch.Tensor:
    """Return images as (B, H, W, 3) float32 on the CPU: alpha dropped, a single channel repeated.

    Values outside [0, 1] are allowed, because noise augmentation makes them, but not the scale of 0 to 255.

    Raises:
        ImageError: Wrong type or shape, NaN or infinity, another scale, a side under 16 pixels, or an aspect ratio
            above 8:1.
    """
    images = as_float32(images, "an image", ImageError)
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or images.shape[0] == 0:
        raise ImageError(f"an image must have the shape (batch, height, width, 3), got {tuple(images.shape)}.")
    height, width = images.shape[1:3]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"an image must be at least {MIN_SIDE} pixels on each side, got {width}x{height}. Use a larger one.",
            code="image.too_small",
        )
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"an image to animate must have an aspect ratio of at most {MAX_ASPECT_RATIO}:1, got {width}x{height} "
            f"({max(height, width) / min(height, width):.1f}:1). Crop it.",
            code="image.too_narrow",
        )
    images = images[..., :3].expand(-1, -1, -1, 3)
    _check_values(images)
    return images


def _check_values(images: torch.Tensor) -> None:
    low, high = map(float, torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the image contains NaN or infinity. Check what made it.", code="image.nan")
    mean = float(images.mean()) if high > MAX_MEAN else 0.0
    if max(-low, high) > MAX_ABS_VALUE or mean > MAX_MEAN:
        raise ImageError(
            f"an image must have values in [0, 1] (a little more with noise), got {low:g} to {high:g}. Divide values "
            "of 0 to 255 by 255, and decode latents first.",
            code="image.range",
        )
