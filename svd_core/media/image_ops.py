"""Pictures: resize policies, [0, 1] <-> [-1, 1], and the two ways CLIP may look at an image.

Images are (B, H, W, 3) float32 in [0, 1] (ComfyUI's IMAGE), pixels are (B, 3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..errors import ImageError, SettingError
from ..runtime.runtime import warn
from ..utils.size_checks import check_multiple
from ..utils.tensor_checks import plain

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

logger = logging.getLogger(__name__)

FITS = ("stretch", "crop", "pad")
PREPROCESSES = ("reference", "center_crop", "whole")
SHORTEST_SIDE = 16  # pixels; less is no picture to animate
LONGEST_SHAPE = 8
"""Long side to short side. CLIP sees a square, and SVD was trained at 16 to 9."""
VISIBLE_PULL = 1.1
"""A picture stretched more than this in one direction looks wrong."""
FARTHEST_VALUE = 64.0
"""Of a picture with noise of strength 10, the most that a node takes, six standard deviations are 60."""
BRIGHTEST_MEAN = 4.0
"""Noise of any strength leaves a picture's mean in [0, 1], give or take 1.5 at strength 10 and 16 by 16 pixels."""


def check_images(images: torch.Tensor) -> torch.Tensor:
    """The images as (B, H, W, 3) float32 on the CPU: alpha dropped, single channels repeated.

    Values outside [0, 1] pass, because noise augmentation makes them on purpose, up to a strength of 10; what has the
    scale of 0 to 255 does not. Raises ImageError for that, for what is no tensor of such a shape, for numbers that are
    not finite, for sides under 16 pixels, and for shapes longer than 8 to 1.
    """
    images = plain(images, "an image", ImageError)
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or images.shape[0] == 0:
        raise ImageError(f"an image must be shaped (batch, height, width, 3), got {tuple(images.shape)}")
    height, width = images.shape[1:3]
    if min(height, width) < SHORTEST_SIDE:
        raise ImageError(
            f"an image must be at least {SHORTEST_SIDE} pixels on each side, got {width}x{height}; use a larger one",
            code="image.too_small",
        )
    if max(height, width) > LONGEST_SHAPE * min(height, width):
        raise ImageError(
            f"an image to animate must be at most {LONGEST_SHAPE} times as long as it is short, got {width}x{height}, "
            f"which is {max(height, width) / min(height, width):.1f} times; cut out a part of it",
            code="image.too_narrow",
        )
    images = images[..., :3].expand(-1, -1, -1, 3)
    _check_values(images)
    return images


def _check_values(images: torch.Tensor) -> None:
    low, high = map(float, torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageError("the image holds NaN or infinite numbers; look at the node it comes from", code="image.nan")
    mean = float(images.mean()) if high > BRIGHTEST_MEAN else 0.0
    if max(-low, high) > FARTHEST_VALUE or mean > BRIGHTEST_MEAN:
        raise ImageError(
            f"an image must hold values in [0, 1], and a little beyond, got {low:g} to {high:g}; divide what goes to "
            f"255 by 255, and connect latents to a decoder first",
            code="image.range",
        )


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (B, H, W, 3) in [0, 1] to pixels (B, 3, H, W) in [-1, 1]."""
    return images.movedim(-1, 1) * 2.0 - 1.0


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to images (B, H, W, 3) float32 clamped to [0, 1]."""
    return (pixels.float() / 2.0 + 0.5).clamp(0.0, 1.0).movedim(1, -1)


def cut_to_multiple(images: torch.Tensor, step: int) -> torch.Tensor:
    """The middle of images (B, H, W, C), with H and W the multiples of `step` below; less is no picture.

    As ComfyUI's core cuts a picture before its VAE.
    """
    height, width = images.shape[1:3]
    top, left = height % step // 2, width % step // 2
    return images[:, top : top + height // step * step, left : left + width // step * step]


def resize_images(images: torch.Tensor, width: int, height: int, fit: str) -> torch.Tensor:
    """Resize images (B, H, W, 3) to (B, height, width, 3) with the Lanczos filter (support 3, antialiased).

    fit
        stretch  the whole picture, its shape not kept (what diffusers does)
        crop     shape kept, what is too much is cut off evenly on both sides
        pad      shape kept, the whole picture; the edge's colours are repeated outwards

    When every value is k/255 the work is done in 8 bits by Pillow, which makes `stretch` equal diffusers'
    `VaeImageProcessor.preprocess`; otherwise by the same filter in float32, and nothing is clamped.
    Raises SettingError unless width and height are multiples of 64, ImageError for what is no picture.
    """
    check_multiple("width", width, 64)
    check_multiple("height", height, 64)
    if fit not in FITS:
        raise SettingError(f'fit must be one of {", ".join(FITS)}, got "{fit}"')
    images = check_images(images)
    _tell_sizes(images, width, height, fit)
    resize = _resize_8_bit if _is_8_bit(images) else _resize_float
    if fit == "pad":
        return torch.stack([_pad_to(resize(image, *_inside(image, width, height)), width, height) for image in images])
    box = _covering_box if fit == "crop" else _whole_box
    return torch.stack([resize(image, width, height, box(image, width, height)) for image in images])


def _tell_sizes(images: torch.Tensor, width: int, height: int, fit: str) -> None:
    from_height, from_width = images.shape[1:3]
    pull = (width / from_width) / (height / from_height)
    if fit == "stretch" and not 1 / VISIBLE_PULL <= pull <= VISIBLE_PULL:
        warn(
            "image.stretched",
            f"the picture of {from_width}x{from_height} is stretched to {width}x{height}, which shows; fit crop and "
            "fit pad keep its shape",
        )
    else:
        logger.info("the picture of %dx%d becomes %dx%d (%s)", from_width, from_height, width, height, fit)


def clip_input_reference(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """What CLIP sees in the reference: the whole frame, Gaussian-blurred, stretched to a square; normalised.

    images (B, H, W, 3) in [0, 1] -> (B, 3, size, size) float32, normalised by mean and std per channel.
    The arithmetic is kornia's `resize(antialias=True, interpolation="bicubic", align_corners=True)` on pixels in
    [-1, 1], as in Stability's generative-models (sgm/modules/encoders/modules.py, FrozenOpenCLIPImageEmbedder) and in
    diffusers' `_resize_with_antialiasing`.
    """
    pixels = to_pixels(check_images(images))
    blurred = _blur_before_shrinking(pixels, size)
    square = F.interpolate(blurred, size=(size, size), mode="bicubic", align_corners=True)
    return _normalise((square + 1.0) / 2.0, mean, std)


def clip_input_center_crop(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """What CLIP sees in ComfyUI's core: the middle square only, bicubic with antialias, rounded to 8 bits; normalised.

    images (B, H, W, 3) in [0, 1] -> (B, 3, size, size) float32, normalised by mean and std per channel.
    """
    height, width = images.shape[1:3]
    scale = size / min(height, width)
    scaled = _resize_bicubic(images, round(height * scale), round(width * scale))
    top, left = (scaled.shape[-2] - size) // 2, (scaled.shape[-1] - size) // 2
    return _normalise(_in_8_bits(scaled[..., top : top + size, left : left + size]), mean, std)


def clip_input_whole(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """The same of the whole frame, its shape not kept: what core's CLIPVisionEncode shows CLIP without a crop."""
    return _normalise(_in_8_bits(_resize_bicubic(images, size, size)), mean, std)


def _resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, H, W, 3) -> (B, 3, height, width), with antialias; left alone when it has that size."""
    channels_first = check_images(images).movedim(-1, 1)
    if channels_first.shape[-2:] == (height, width):
        return channels_first
    return F.interpolate(channels_first, size=(height, width), mode="bicubic", antialias=True)


def _in_8_bits(images: torch.Tensor) -> torch.Tensor:
    return (images * 255.0).clamp(0.0, 255.0).round() / 255.0


def _normalise(images: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _blur_before_shrinking(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Gaussian blur with reflected edges; sigma = (shrink - 1) / 2 per axis, a kernel two sigmas to each side."""
    for axis in (-1, -2):
        length = pixels.shape[axis]
        sigma = max((length / size - 1.0) / 2.0, 0.001)
        taps = int(max(4.0 * sigma, 3)) | 1
        offsets = torch.arange(taps, dtype=pixels.dtype) - taps // 2
        kernel = torch.exp(-offsets.pow(2) / (2 * torch.tensor(sigma) ** 2))
        pixels = _filter_along(pixels, kernel / kernel.sum(), axis)
    return pixels


def _filter_along(pixels: torch.Tensor, kernel: torch.Tensor, axis: int) -> torch.Tensor:
    taps, channels = kernel.numel(), pixels.shape[1]
    half = taps // 2
    horizontal = axis == -1
    padded = F.pad(pixels, (half, half, 0, 0) if horizontal else (0, 0, half, half), mode="reflect")
    weight = kernel.view(1, 1, 1, taps) if horizontal else kernel.view(1, 1, taps, 1)
    return F.conv2d(padded, weight.expand(channels, 1, -1, -1), groups=channels)


def _is_8_bit(images: torch.Tensor) -> bool:
    steps = (images * 255.0).round()
    return bool((steps >= 0).all() and (steps <= 255).all() and torch.equal(steps / 255.0, images))


def _resize_8_bit(image: torch.Tensor, width: int, height: int, box: tuple | None = None) -> torch.Tensor:
    from PIL import Image

    picture = Image.fromarray((image * 255.0).round().to(torch.uint8).numpy())
    return torch.from_numpy(_as_array(picture, width, height, box)).float() / 255.0


def _resize_float(image: torch.Tensor, width: int, height: int, box: tuple | None = None) -> torch.Tensor:
    from PIL import Image

    planes = [Image.fromarray(channel.contiguous().numpy()) for channel in image.unbind(-1)]
    return torch.stack([torch.from_numpy(_as_array(plane, width, height, box)) for plane in planes], dim=-1)


def _as_array(picture: Image.Image, width: int, height: int, box: tuple | None) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _whole_box(image: torch.Tensor, width: int, height: int) -> tuple[float, float, float, float]:
    return (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))


def _covering_box(image: torch.Tensor, width: int, height: int) -> tuple[float, float, float, float]:
    """The largest middle part of the image that has the shape width : height, as (left, top, right, bottom)."""
    from_height, from_width = image.shape[:2]
    scale = max(width / from_width, height / from_height)
    keep_width, keep_height = min(width / scale, from_width), min(height / scale, from_height)
    left, top = (from_width - keep_width) / 2, (from_height - keep_height) / 2
    return (left, top, left + keep_width, top + keep_height)


def _inside(image: torch.Tensor, width: int, height: int) -> tuple[int, int]:
    """The size of the whole image when it just fits into width x height."""
    from_height, from_width = image.shape[:2]
    scale = min(width / from_width, height / from_height)
    return max(1, round(from_width * scale)), max(1, round(from_height * scale))


def _pad_to(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    extra_width, extra_height = width - image.shape[1], height - image.shape[0]
    left, top = extra_width // 2, extra_height // 2
    sides = (left, extra_width - left, top, extra_height - top)
    return F.pad(image.movedim(-1, 0)[None], sides, mode="replicate")[0].movedim(0, -1)
