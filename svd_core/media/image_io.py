"""Picture files to images and masks: only known formats, only whole files, nothing larger than it pretends to be."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import ImageError
from ..runtime.runtime import warn
from ..utils.safe_open import open_plain
from .alpha_compositing import KEEP, Background, composite, format_color
from .color import DEEP_WHITE, has_alpha, note_ignored, transparency, write_colours
from .image_16bit import grey_with_alpha, is_deep, read_deep, read_grey_with_alpha

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

MOST_FRAMES = 1000
"""Pictures in one file."""

LARGEST_FILE = 512_000_000
"""Bytes: 50 megapixels of 16-bit RGBA have 400 million, uncompressed."""

MOST_MARKERS = 5000
"""Segments of a JPEG: scans, and the up to 255 that an embedded profile takes."""

MOST_SCANS = 100
"""Times that a JPEG may go over its picture; progressive ones do so about ten times."""

LOWEST_FLOAT = -0.5
"""A float picture with smaller values is on another scale, such as -1 to 1."""

_ORIENTATION = 0x0112  # EXIF 2.32
_EMPTY_MASK_SIDE = 64  # ComfyUI LoadImage, for pictures without transparency


def load_picture(path: str | os.PathLike, background: Background | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture file as images (B, H, W, 3) float32 in [0, 1] and mask (B, H, W), 1 where it is transparent.

    background  what transparent parts are put on. KEEP leaves the colours that the file has there, as ComfyUI's
                LoadImage does; None does so, too, and tells the user

    B is 1, or the number of frames of an animation that have the first one's size. Without transparency the mask is
    zeros (B, 64, 64), as ComfyUI's LoadImage has it. Turned as EXIF says. Colours have all their digits: 16 bits of
    PNG and TIFF, float TIFF in [0, 1]; CMYK becomes sRGB by the profile in the file. Profiles of RGB files are ignored,
    as in ComfyUI. Raises ImageError when the file is missing, truncated (whatever Pillow's LOAD_TRUNCATED_IMAGES says;
    who wants a half picture opens it with Pillow), damaged, of another format than `FORMATS`, or larger than 50
    megapixels or 1000 frames.
    """
    import torch

    path = Path(path)
    name = shown_name(path)
    with _WHOLE_FILES, _open_bytes(path, name) as stream, _damage_explained(name):
        samples = _grey_with_alpha(name, stream)
        images, mask = _read(name, stream) if samples is None else _deep_as_tensors(samples)
    if len(images) > 1:
        text = f"{name} holds {len(images)} pictures: each becomes an image, and a video, of its own"
        warn("image.several", text)
    if mask is None:
        return images, torch.zeros(len(images), _EMPTY_MASK_SIDE, _EMPTY_MASK_SIDE)
    return _on_background(name, images, mask, background), mask


def _read(name: str, stream: IO[bytes]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (B, H, W, 3) and mask (B, H, W), or None without transparency, of a file that Pillow knows."""
    picture = _opened(name, stream)
    orientation = picture.getexif().get(_ORIENTATION, 1)
    deep = is_deep(picture, stream)
    note_ignored(name, picture)
    frames = _same_size_frames(name, picture)
    if deep and len(frames) == 1:
        samples = read_deep(stream, str(picture.format), orientation, frames[0])
        if samples is not None:
            return _deep_as_tensors(samples)
    if deep:
        text = f"{name} has 16 bits a channel in a form of which only 8 are read here; save it as plain PNG"
        warn("image.depth", text)
    return _as_tensors(name, frames)


def _grey_with_alpha(name: str, stream: IO[bytes]) -> np.ndarray | None:
    """(H, W, 4) uint16 of the one kind of picture that only PyAV knows; None of all others."""
    size = grey_with_alpha(stream)
    if size is None:
        return None
    _check_size(name, size[0] * size[1], LARGEST_PICTURE, f"{size[0]}x{size[1]}")
    samples = read_grey_with_alpha(stream)
    if samples is None:
        raise _damaged(name)
    return samples


def shown_name(path: str | os.PathLike) -> str:
    """A path for messages and logs: bytes that are no UTF-8 as escapes, so that it can be printed everywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _on_background(name: str, images: torch.Tensor, mask: torch.Tensor, background: Background | None) -> torch.Tensor:
    if not mask.any():
        return images
    if background is None:
        warn(
            "image.transparent",
            f"{name} is transparent in parts; the colours that it hides there are used, as in ComfyUI. --background "
            "white puts it on a colour, --background keep says that this is meant",
        )
    elif background != KEEP:
        warn("image.transparent", f"{name} is transparent in parts, and was put on {format_color(background)}")
    return composite(images, mask, background or KEEP)


def _as_tensors(name: str, frames: list[Image.Image]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (B, H, W, 3) and mask (B, H, W) of upright frames of one size; no mask when none is transparent."""
    import numpy as np
    import torch

    width, height = frames[0].size
    images = np.empty((len(frames), height, width, 3), np.float32)
    for frame, out in zip(frames, images, strict=True):
        write_colours(name, frame, out)
    transparencies = [transparency(frame) for frame in frames]
    if all(each is None for each in transparencies):
        return torch.from_numpy(images), None
    mask = np.zeros((len(frames), height, width), np.float32)
    for each, out in zip(transparencies, mask, strict=True):
        if each is not None:
            out[:] = each
    return torch.from_numpy(images), torch.from_numpy(mask)


def _deep_as_tensors(samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Images (1, H, W, 3) and mask (1, H, W) of samples (H, W, 3 or 4) uint16."""
    import numpy as np
    import torch

    images = np.divide(samples[..., :3], np.float32(DEEP_WHITE), dtype=np.float32)
    if samples.shape[2] == 3:
        return torch.from_numpy(images)[None], None
    alpha = np.divide(samples[..., 3], np.float32(DEEP_WHITE), dtype=np.float32)
    return torch.from_numpy(images)[None], torch.from_numpy(1 - alpha)[None]


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


class _WholeFiles:
    """Inside, Pillow refuses truncated files. ComfyUI and its extensions tell it to fill them up with grey, for the
    whole process; that is put back afterwards. One picture at a time is read, because Pillow has one such switch."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        from PIL import ImageFile

        self._lock.acquire()
        self._before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, *_: object) -> None:
        from PIL import ImageFile

        ImageFile.LOAD_TRUNCATED_IMAGES = self._before
        self._lock.release()


_WHOLE_FILES = _WholeFiles()


@contextlib.contextmanager
def _damage_explained(name: str) -> Iterator[None]:
    """Any failure while the file is open is an ImageError."""
    from PIL import Image

    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture in a format that is read here; save it as {', '.join(FORMATS[:-1])} or "
            f"{FORMATS[-1]} and use that.",
            code="image.unsupported",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "far more than that", LARGEST_PICTURE) from error
    except pillow_damage() as error:
        raise _damaged(name) from error


def _opened(name: str, stream: IO[bytes]) -> Image.Image:
    """Open by content and check what the header tells."""
    from PIL import Image

    Image.init()
    known = [form for form in FORMATS if form in Image.OPEN]
    _check_scans(name, stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is stricter
        picture = Image.open(stream, formats=known)
    _check_header(name, picture, stream)
    return picture


def _damaged(name: str) -> ImageError:
    return ImageError(
        f"{name} is truncated or damaged and cannot be read whole; fetch or export it again.", code="image.damaged"
    )


def _open_bytes(path: Path, name: str) -> IO[bytes]:
    try:
        stream = open_plain(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"there is no picture {name}; check the path.", code="image.missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"the picture {name} cannot be opened: {reason}. Give a file that you may read.", code="image.unreadable"
        ) from error
    size = os.fstat(stream.fileno()).st_size
    if size > LARGEST_FILE:
        stream.close()
        raise ImageError(f"{name} has {size} bytes; a picture may have {LARGEST_FILE}.", code="image.too_large")
    return stream


def _check_header(name: str, picture: Image.Image, stream: IO[bytes]) -> None:
    """Refuse what would take too long or too much, before anything is decoded."""
    _check_size(name, picture.width * picture.height, LARGEST_PICTURE, f"{picture.width}x{picture.height}")
    if picture.format in ("PNG", "WEBP", "AVIF"):  # their headers tell it; others are counted as they are read
        count = getattr(picture, "n_frames", 1)
        _check_count(name, count)
        _check_size(name, count * picture.width * picture.height, LARGEST_ANIMATION, f"{count} frames")


def _check_scans(name: str, stream: IO[bytes]) -> None:
    """Refuse a JPEG of too many parts before Pillow looks at each."""
    if stream.read(2) == b"\xff\xd8" and _count_scans(stream) > MOST_SCANS:
        raise ImageError(
            f"{name} must be a JPEG of at most {MOST_SCANS} scans, each of which goes over the whole picture, and of "
            f"at most {MOST_MARKERS} segments; save it anew.",
            code="image.too_large",
        )
    stream.seek(0)


def _count_scans(stream: IO[bytes]) -> int:
    """How often a JPEG goes over its picture: the SOS markers before the first EOI (ITU-T T.81, annex B).

    No more are counted than are too many; too many segments of any kind are as many.
    """
    stream.seek(0)
    content = stream.read()
    scans, at = 0, 2
    for _ in range(MOST_MARKERS):
        marker = _JPEG_MARKER.search(content, at)
        if marker is None or marker[1] == b"\xd9" or scans > MOST_SCANS:
            return scans
        scans += marker[1] == b"\xda"
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return MOST_SCANS + 1


_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
"""Those with a length behind them. What is coded holds 0xff before 0x00 and restart markers (0xd0 to 0xd7) only."""


def _same_size_frames(name: str, picture: Image.Image) -> list[Image.Image]:
    """The frames that have the first one's size, upright; of an MPO (a camera's picture and its extras) the first."""
    from PIL import ImageOps, ImageSequence

    frames: list[Image.Image] = []
    pixels, others = 0, 0
    for count, frame in enumerate(ImageSequence.Iterator(picture), 1):
        _check_count(name, count)
        _check_size(name, frame.width * frame.height, LARGEST_PICTURE, f"{frame.width}x{frame.height}")
        pixels += frame.width * frame.height
        _check_size(name, pixels, max(LARGEST_ANIMATION, LARGEST_PICTURE), f"{count} frames")
        upright = ImageOps.exif_transpose(frame)
        upright.load()
        if not frames or upright.size == frames[0].size:
            frames.append(upright)
        else:
            others += 1
        if picture.format == "MPO":
            break
    if others:
        text = f"{name}: {others} of its pictures have another size than the first and are left out"
        warn("image.several", text)
    return frames


def _check_count(name: str, count: int) -> None:
    if count > MOST_FRAMES:
        raise ImageError(
            f"{name} must hold at most {MOST_FRAMES} pictures, got more; take out the ones that you mean.",
            code="image.too_large",
        )


def _check_size(name: str, pixels: int, limit: int, given: str) -> None:
    if pixels > limit:
        raise _too_large(name, given, limit)


def _too_large(name: str, given: str, limit: int) -> ImageError:
    return ImageError(
        f"{name} must have at most {limit // 1_000_000} megapixels, got {given}; make it smaller first (the video is "
        f"1024x576).",
        code="image.too_large",
    )


def as_images(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor, background: Background = KEEP
) -> torch.Tensor:
    """A file, a PIL image, an array or a tensor as images (B, H, W, 3) float32 in [0, 1].

    background  what transparent parts are put on, those of arrays and tensors with four channels, too

    Arrays and tensors are (H, W, C) or (B, H, W, C), C 1, 3 or 4: uint8, or floats in [0, 1]. PIL images have 8 bits a
    channel. What is given is left as it is. Raises ImageError for anything else, rather than guess its scale.
    """
    import numpy as np
    import torch
    from PIL import Image

    from .image_ops import check_images

    if isinstance(image, (str, os.PathLike)):
        return check_images(load_picture(Path(image), background)[0])
    if isinstance(image, Image.Image):
        image = _pixels_of(image)
    if isinstance(image, np.ndarray):
        image = _array_as_tensor(image)
    if not isinstance(image, torch.Tensor):
        raise ImageError(f"an image is a file, a PIL image, an array or a tensor, got {type(image).__name__}")
    images = _scaled(image)
    images = images[None] if images.ndim == 3 else images
    if background != KEEP and images.ndim == 4 and images.shape[-1] == 4:
        images = _on_background("the image", images[..., :3], 1 - images[..., 3], background)
    return check_images(images)


def _pixels_of(picture: Image.Image) -> np.ndarray:
    """(H, W, 3 or 4) uint8, upright."""
    import numpy as np
    from PIL import ImageOps

    if picture.mode.startswith(("I", "F")):
        raise ImageError(f'a PIL image of mode "{picture.mode}" has no sure scale; give the path of its file')
    try:
        upright = ImageOps.exif_transpose(picture)
        if has_alpha(upright):
            return np.array(upright.convert("RGBA"))
        colours = np.empty((upright.height, upright.width, 3), np.float32)
        write_colours("the PIL image", upright, colours)
        return colours
    except pillow_damage() as error:
        raise ImageError(
            f"the PIL image cannot be read: {str(error)[:200]}. Open its file again.", code="image.damaged"
        ) from error


def _array_as_tensor(array: np.ndarray) -> torch.Tensor:
    """A copy of an array of bytes or floats, of either byte order."""
    import numpy as np
    import torch

    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ImageError(f"an array must be uint8, or floats in [0, 1]; got {array.dtype}")
    return torch.from_numpy(np.array(array, np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))


def _scaled(image: torch.Tensor) -> torch.Tensor:
    """Float32 in [0, 1] of a tensor of bytes or floats, which is left as it is. Raises ImageError for other scales."""
    import torch

    from ..utils.tensor_checks import plain

    if image.dtype == torch.uint8 and image.device.type != "meta" and image.layout == torch.strided:
        return image.to("cpu", torch.float32) / 255.0
    images = plain(image, "an image", ImageError)
    low, high = map(float, torch.aminmax(images)) if images.numel() else (0.0, 1.0)
    if low < LOWEST_FLOAT or high > HIGHEST_FLOAT:
        raise ImageError(
            f"an array or tensor must be uint8, or floats in [0, 1]; got {image.dtype} of another scale, from {low:g} "
            f"to {high:g}",
            code="image.range",
        )
    return images
