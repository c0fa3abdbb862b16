"""Resize images, convert between [0, 1] and [-1, 1], and prepare the input of CLIP.

Images are (B, H, W, 3) float32 in [0, 1] (ComfyUI's IMAGE), pixels are (B, 3, H, W) float32 in [-1, 1].
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from ..errors import SettingError
from ..utils.size_checks import check_multiple
from ..utils.tensor_checks import check_images
from ..utils.warnings import RunWarning

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

FITS = ("stretch", "crop", "pad")
VISIBLE_STRETCH = 1.1
"""Stretching an image more than this in one direction is visible."""


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Convert images (B, H, W, 3) in [0, 1] to pixels (B, 3, H, W) in [-1, 1]."""
    return images.movedim(-1, 1) * 2.0 - 1.0


def to_images(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels (B, 3, H, W) in [-1, 1] to images (B, H, W, 3) float32, clamped to [0, 1]."""
    return (pixels.float() / 2.0 + 0.5).clamp(0.0, 1.0).movedim(1, -1)


def psnr(images: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [0, 1] in dB."""
    return -10 * float((images - reference).square().mean().clamp_min(1e-12).log10())


def crop_to_multiple(images: torch.Tensor, step: int) -> torch.Tensor:
    """Crop images (B, H, W, C) at the center so that H and W are multiples of `step`, as ComfyUI's VAEEncode does.

    A side smaller than `step` becomes 0.
    """
    height, width = images.shape[1:3]
    top, left = height % step // 2, width % step // 2
    return images[:, top : top + height // step * step, left : left + width // step * step]


def resize_images(
    images: torch.Tensor, width: int, height: int, fit: str, multiple: int = 64
) -> tuple[torch.Tensor, tuple[RunWarning, ...]]:
    """Resize images (B, H, W, 3) to (B, height, width, 3) with the Lanczos filter (support 3, antialiased).

    If every value is k/255, Pillow resizes in 8 bits, so that `stretch` equals diffusers'
    `VaeImageProcessor.preprocess`. Otherwise the same filter runs in float32, and nothing is clamped.

    Args:
        images: Values in [0, 1].
        width: A multiple of `multiple`.
        height: A multiple of `multiple`.
        fit: `stretch` ignores the aspect ratio (as diffusers does), `crop` keeps it and crops the center, `pad` keeps
            it and repeats the edge pixels.
        multiple: 64 for the published UNet, whose latents are halved three times.

    Returns:
        The images, and a warning if stretching is visible.

    Raises:
        SettingError: Invalid size or fit.
        ImageError: See `check_images`.
    """
    check_multiple("width", width, multiple)
    check_multiple("height", height, multiple)
    if fit not in FITS:
        raise SettingError(f'fit must be one of {", ".join(FITS)}, got "{fit}".')
    images = check_images(images)
    resize = _resize_8bit if _is_8bit(images) else _resize_float
    if fit == "pad":
        resized = [_pad_to(resize(image, *_size_inside(image, width, height)), width, height) for image in images]
    else:
        box = _center_box(images, width, height) if fit == "crop" else None
        resized = [resize(image, width, height, box) for image in images]
    return torch.stack(resized), _stretch_warnings(images, width, height, fit)


def _stretch_warnings(images: torch.Tensor, width: int, height: int, fit: str) -> tuple[RunWarning, ...]:
    from_height, from_width = images.shape[1:3]
    stretch = (width / from_width) / (height / from_height)
    if fit == "stretch" and not 1 / VISIBLE_STRETCH <= stretch <= VISIBLE_STRETCH:
        text = f"the image of {from_width}x{from_height} is stretched visibly to {width}x{height}. Use fit crop or pad."
        return (RunWarning("image.stretched", text),)
    logger.info("the image of %dx%d becomes %dx%d (%s)", from_width, from_height, width, height, fit)
    return ()


def clip_input_reference(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """Prepare CLIP's input as the reference does: blur the full frame, stretch it to a square, normalize.

    The arithmetic is kornia's `resize(antialias=True, interpolation="bicubic", align_corners=True)` on pixels in
    [-1, 1], as in Stability's generative-models (sgm/modules/encoders/modules.py, FrozenOpenCLIPImageEmbedder) and in
    diffusers' `_resize_with_antialiasing`.

    Args:
        images: (B, H, W, 3) in [0, 1].
        size: Side of the square in pixels.
        mean: Mean per channel.
        std: Standard deviation per channel.

    Returns:
        (B, 3, size, size) float32.
    """
    pixels = to_pixels(check_images(images))
    blurred = _blur_before_downscaling(pixels, size)
    square = F.interpolate(blurred, size=(size, size), mode="bicubic", align_corners=True)
    return _normalize((square + 1.0) / 2.0, mean, std)


def clip_input_center_crop(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """Prepare CLIP's input as ComfyUI does: antialiased bicubic resize, center square, 8-bit rounding, normalize.

    Arguments and result as in `clip_input_reference`.
    """
    height, width = images.shape[1:3]
    scale = size / min(height, width)
    scaled = _resize_bicubic(images, round(height * scale), round(width * scale))
    top, left = (scaled.shape[-2] - size) // 2, (scaled.shape[-1] - size) // 2
    return _normalize(_round_to_8bit(scaled[..., top : top + size, left : left + size]), mean, std)


def clip_input_whole(images: torch.Tensor, size: int, mean: tuple, std: tuple) -> torch.Tensor:
    """Prepare CLIP's input as ComfyUI's CLIPVisionEncode does with crop "none": stretch the full frame to a square.

    Arguments and result as in `clip_input_reference`.
    """
    return _normalize(_round_to_8bit(_resize_bicubic(images, size, size)), mean, std)


def _resize_bicubic(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize (B, H, W, 3) to (B, 3, height, width) with antialiasing, unless it has that size."""
    channels_first = check_images(images).movedim(-1, 1)
    if channels_first.shape[-2:] == (height, width):
        return channels_first
    return F.interpolate(channels_first, size=(height, width), mode="bicubic", antialias=True)


def _round_to_8bit(images: torch.Tensor) -> torch.Tensor:
    return (images * 255.0).clamp(0.0, 255.0).round() / 255.0


def _normalize(images: torch.Tensor, mean: tuple, std: tuple) -> torch.Tensor:
    return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def _blur_before_downscaling(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Blur with a Gaussian per axis: sigma = (downscale factor - 1) / 2, two sigmas to each side, reflected edges."""
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


def _is_8bit(images: torch.Tensor) -> bool:
    """Return True if every value is k / 255."""
    levels = (images * 255.0).round()
    return bool((levels >= 0).all() and (levels <= 255).all() and torch.equal(levels / 255.0, images))


Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def _resize_8bit(image: torch.Tensor, width: int, height: int, box: Box | None = None) -> torch.Tensor:
    from PIL import Image

    levels = Image.fromarray((image * 255.0).round().to(torch.uint8).numpy())
    return _lanczos(levels, width, height, box).float() / 255.0


def _resize_float(image: torch.Tensor, width: int, height: int, box: Box | None = None) -> torch.Tensor:
    from PIL import Image

    planes = [Image.fromarray(channel.contiguous().numpy()) for channel in image.unbind(-1)]
    return torch.stack([_lanczos(plane, width, height, box) for plane in planes], dim=-1)


def _lanczos(image: Image.Image, width: int, height: int, box: Box | None) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.LANCZOS, box=box)))


def _center_box(images: torch.Tensor, width: int, height: int) -> Box:
    """Return the largest centered part of images (B, H, W, C) with the aspect ratio width : height."""
    from_height, from_width = images.shape[1:3]
    scale = max(width / from_width, height / from_height)
    crop_width, crop_height = min(width / scale, from_width), min(height / scale, from_height)
    left, top = (from_width - crop_width) / 2, (from_height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


def _size_inside(image: torch.Tensor, width: int, height: int) -> tuple[int, int]:
    """Return the largest (width, height) with the aspect ratio of `image` that fits into width x height."""
    from_height, from_width = image.shape[:2]
    scale = min(width / from_width, height / from_height)
    return max(1, round(from_width * scale)), max(1, round(from_height * scale))


def _pad_to(image: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Center `image` (H, W, C) in (height, width, C) and repeat its edge pixels."""
    extra_width, extra_height = width - image.shape[1], height - image.shape[0]
    left, top = extra_width // 2, extra_height // 2
    padding = (left, extra_width - left, top, extra_height - top)
    return F.pad(image.movedim(-1, 0)[None], padding, mode="replicate")[0].movedim(0, -1)
