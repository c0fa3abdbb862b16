"""Read the `image` argument of a pipeline call, and a picture from a path or URL, as diffusers does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageOps

from ..errors import ImageError, printable
from ..media.image_download import download_image, is_url
from ..media.image_io import as_images, open_image

logger = logging.getLogger(__name__)


def read_images(image: Any) -> list[torch.Tensor]:
    """Return the images of a pipeline call, each (1, H, W, 3) float32 in [0, 1].

    Args:
        image: A PIL image or an array (H, W, 3), a tensor (B, 3, H, W) or (3, H, W) in [0, 1], or a list of those.

    Raises:
        ImageError: Anything else, an empty list, or values of another scale.
        TypeError: Text: a path or URL, which `load_image` reads, or a prompt.
    """
    if isinstance(image, (list, tuple)):
        if not image:
            raise ImageError("image must be an image or a list of them, got an empty list")
        return [each for item in image for each in read_images(item)]
    if isinstance(image, (str, bytes, os.PathLike)):
        raise TypeError(
            f'image must be an image, got the text "{printable(image, 80)}". Use load_image on a path or URL; SVD '
            "takes no prompt."
        )
    if isinstance(image, torch.Tensor):
        if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3):
            raise ImageError(f"an image tensor must be (batch, 3, height, width), got {tuple(image.shape)}")
        image = image.movedim(-3, -1)
        if image.min() < 0:
            raise ImageError(
                f"an image tensor must be in [0, 1], got {image.min():g}; convert [-1, 1] with x / 2 + 0.5"
            )
    images, warnings = as_images(image)
    for warning in warnings:
        logger.warning("%s", warning.text)
    return list(images.split(1))


def load_image(
    image: str | Image.Image, convert_method: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """Load an image from a path or an http(s) URL, upright as EXIF says, in RGB. As `diffusers.utils.load_image`.

    Args:
        image: A path, a URL (see `image_download` for its limits), or a PIL image.
        convert_method: Called in place of the conversion to RGB.

    Raises:
        ImageError: The file is missing, damaged, too large, of another format, or cannot be downloaded.
        TypeError: `image` is neither.
    """
    if isinstance(image, str):
        image = open_image(image, download_image(image) if is_url(image) else None)
    if not isinstance(image, Image.Image):
        raise TypeError(f"image must be a path, an http(s) URL or a PIL image, got {type(image).__name__}")
    upright = ImageOps.exif_transpose(image)
    return convert_method(upright) if convert_method is not None else upright.convert("RGB")
