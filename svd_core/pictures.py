"""Picture files to images and masks: only known formats, only whole files, nothing larger than it pretends to be."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")
"""What is opened, by content. Pillow knows many more, each a room for mistakes (PDF, EPS, FITS, PSD)."""

LARGEST_PICTURE = 50_000_000
"""Pixels of one picture, checked in the header before anything is decoded: 600 MB as float32."""

LARGEST_ANIMATION = 200_000_000
"""Pixels of all frames together."""

HIGHEST_FLOAT = 8.0
"""A float picture with larger values is on another scale, such as 0 to 255; noise on [0, 1] does not get there."""

_DEEP_WHITE = 65535  # of 16-bit grey, and what ComfyUI takes it to be in 32-bit grey

_EMPTY_MASK_SIDE = 64  # ComfyUI LoadImage, for pictures without transparency


def load_picture(path: str | os.PathLike) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture file as images (B, H, W, 3) float32 in [0, 1] and mask (B, H, W), 1 where it is transparent.

    B is 1, or the number of frames of an animation that have the first one's size. Without transparency the mask is
    zeros (B, 64, 64), as ComfyUI's LoadImage has it. Turned as EXIF says; transparency is not blended away. 16-bit and
    32-bit grey are taken as 0 to 65535, with all their digits. Raises ImageError when the file is missing, truncated,
    damaged, of another format than `FORMATS`, or larger than 50 megapixels.
    """
    import numpy as np
    import torch

    path = Path(path)
    with _open_picture(path) as picture:
        frames = _same_size_frames(path, picture)
    images = torch.from_numpy(np.stack([_colours(frame) for frame in frames]))
    transparencies = [_transparency(frame) for frame in frames]
    if all(each is None for each in transparencies):
        return images, torch.zeros(len(frames), _EMPTY_MASK_SIDE, _EMPTY_MASK_SIDE)
    solid = np.zeros(images.shape[1:3], np.float32)
    return images, torch.from_numpy(np.stack([solid if each is None else each for each in transparencies]))


def pillow_damage() -> tuple[type[Exception], ...]:
    """What Pillow raises over a damaged file. Found by changing and cutting valid files of every format."""
    from PIL import Image

    unexpected = (
        SyntaxError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        RuntimeError,
        ArithmeticError,
        struct.error,
    )
    return (OSError, Image.DecompressionBombError, *unexpected)


@contextlib.contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    """Open by content and check the size in the header. Any failure while the file is open is an ImageError."""
    from PIL import Image

    with _open_bytes(path) as stream:
        try:
            Image.init()
            known = [name for name in FORMATS if name in Image.OPEN]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is stricter
                picture = Image.open(stream, formats=known)
            _check_size(path, picture.width * picture.height, LARGEST_PICTURE, f"{picture.width}x{picture.height}")
            yield picture
        except Image.UnidentifiedImageError as error:
            raise ImageError(
                f"{path} is not a picture in a format that is read here; save it as {', '.join(FORMATS[:-1])} or "
                f"{FORMATS[-1]} and use that.",
                code="image.unsupported",
            ) from error
        except Image.DecompressionBombError as error:
            raise _too_large(path, "far more than that", LARGEST_PICTURE) from error
        except pillow_damage() as error:
            raise ImageError(
                f"{path} is truncated or damaged and cannot be read whole; fetch or export it again.",
                code="image.damaged",
            ) from error


def _open_bytes(path: Path) -> Any:
    try:
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"there is no picture {path}; check the path.", code="image.missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"the picture {path} cannot be opened: {reason}. Give a file that you may read.", code="image.unreadable"
        ) from error


def _same_size_frames(path: Path, picture: Image.Image) -> list[Image.Image]:
    """The frames that have the first one's size, upright; of an MPO (a camera's picture and its extras) the first."""
    from PIL import ImageOps, ImageSequence

    frames: list[Image.Image] = []
    for frame in ImageSequence.Iterator(picture):
        _check_size(path, frame.width * frame.height, LARGEST_PICTURE, f"{frame.width}x{frame.height}")
        _check_size(path, sum(f.width * f.height for f in frames), LARGEST_ANIMATION, f"{len(frames)} frames")
        upright = ImageOps.exif_transpose(frame)
        upright.load()
        if not frames or upright.size == frames[0].size:
            frames.append(upright)
        if picture.format == "MPO":
            break
    return frames


def _check_size(path: Path, pixels: int, limit: int, given: str) -> None:
    if pixels > limit:
        raise _too_large(path, given, limit)


def _too_large(path: Path, given: str, limit: int) -> ImageError:
    return ImageError(
        f"{path} must have at most {limit // 1_000_000} megapixels, got {given}; make it smaller first (the video is "
        f"1024x576).",
        code="image.too_large",
    )


def _colours(frame: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    import numpy as np

    if frame.mode.startswith("I"):  # Pillow's own way to RGB clips at 255 and leaves white
        grey = np.asarray(frame.convert("I"), np.float32) / _DEEP_WHITE
        return np.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    return np.asarray(frame.convert("RGB"), np.float32) / 255


def _transparency(frame: Image.Image) -> np.ndarray | None:
    """(H, W) float32, 1 where nothing is to be seen; None for a picture without an alpha channel."""
    import numpy as np

    if frame.mode == "P" and "transparency" in frame.info:
        frame = frame.convert("RGBA")
    if "A" not in frame.getbands():
        return None
    return 1 - np.asarray(frame.getchannel("A"), np.float32) / 255


def as_images(image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """A file, a PIL image, an array or a tensor as images (B, H, W, 3) float32 in [0, 1].

    Arrays and tensors are (H, W, 3) or (B, H, W, 3): uint8, or floats in [0, 1]. PIL images have 8 bits a channel.
    Raises ImageError for anything else, rather than guess its scale.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    from .images import check_images

    if isinstance(image, (str, os.PathLike)):
        return check_images(load_picture(Path(image))[0])
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ImageError(f'a PIL image of mode "{image.mode}" has no sure scale; give the path of its file')
        image = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image)) if image.dtype.kind in "uifb" else image
    if not isinstance(image, torch.Tensor):
        raise ImageError(f"an image is a file, a PIL image, an array or a tensor, got {type(image).__name__}")
    if image.dtype == torch.uint8:
        image = image.float() / 255.0
    elif not image.is_floating_point() or (image.numel() and image.max() > HIGHEST_FLOAT):
        raise ImageError(f"an array or tensor must be uint8, or floats in [0, 1]; got {image.dtype} of another scale")
    return check_images(image[None] if image.ndim == 3 else image)
