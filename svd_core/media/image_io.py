"""Load image files, PIL images, arrays and tensors as images, with limits on size and format."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import ImageError
from ..utils.optional_deps import has_extra
from ..utils.safe_open import open_regular_file
from ..utils.warnings import RunWarning
from .alpha_compositing import KEEP, Background, composite, format_color
from .color import WHITE_16BIT, color_space_warnings, transparency, write_colors
from .image_16bit import is_16bit, read_16bit
from .jpeg_limits import check_jpeg_scans

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "AVIF", "GIF")
"""Formats that are opened, detected by content. Pillow has many more (PDF, EPS, FITS, PSD), which widen the attack
surface."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands in the `ftyp` box of HEIC and HEIF photographs (ISO/IEC 23008-12). AVIF files have brands of their own."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".gif", ".heic", ".heif")
"""Suffixes of the files of a folder that are images. The content is checked when a file is opened."""

MAX_PIXELS = 50_000_000
"""Pixels of one image, checked before it is decoded: 600 MB as float32."""

MAX_TOTAL_PIXELS = 200_000_000
"""Pixels of all frames of one file."""

MAX_FRAMES = 1000
"""Frames or pages of one file."""

MAX_FILE_BYTES = 512_000_000
"""50 megapixels of uncompressed 16-bit RGBA have 400 million bytes."""

MIN_FLOAT, MAX_FLOAT = -0.5, 8.0
"""Float images with values outside have another scale, such as -1 to 1 or 0 to 255. Noise on [0, 1] stays inside."""

_ORIENTATION = 0x0112  # EXIF 2.32
_TIFF_SIZE = (0x0100, 0x0101)  # TIFF 6.0: ImageWidth, ImageLength
_FIRST_TURNED = 5  # EXIF 2.32: orientations 5 to 8 exchange width and height
_EMPTY_MASK_SIDE = 64  # ComfyUI's LoadImage, for images without transparency


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """The content of an image file.

    Attributes:
        images: (B, H, W, 3) float32 in [0, 1]. B is 1, or the number of frames that have the first one's size.
        mask: (B, H, W) float32, 1 where the image is transparent. Zeros (B, 64, 64) without transparency, as in
            ComfyUI's LoadImage.
        warnings: What the user should know about the file.
    """

    images: torch.Tensor
    mask: torch.Tensor
    warnings: tuple[RunWarning, ...]


def load_image(
    path: str | os.PathLike, background: Background | None = None, stream: IO[bytes] | None = None
) -> LoadedImage:
    """Load an image file, upright as EXIF says.

    16-bit PNG and TIFF and float TIFF keep their precision. CMYK is converted to sRGB with the file's profile. Profiles
    of RGB files are ignored, as in ComfyUI. Truncated files are refused even if Pillow's LOAD_TRUNCATED_IMAGES is set.

    Args:
        path: The file, in one of `FORMATS`, or HEIF if pillow-heif is installed. A name for messages if `stream` is
            given.
        background: Color behind transparent parts. KEEP keeps the colors that the file stores there, as ComfyUI's
            LoadImage does. None does the same and warns.
        stream: The content.

    Raises:
        ImageError: The file is missing, damaged, of another format, or above the limits of this module.
    """
    import torch

    path = Path(path)
    name = display_name(path)
    run_warnings: list[RunWarning] = []
    with _refuse_truncated_files(), stream or _open_file(path, name) as file, _translate_pillow_errors(name):
        images, mask = _decode(name, file, run_warnings)
    if len(images) > 1:
        text = f"{name} contains {len(images)} images. Each becomes an image, and a video, of its own."
        run_warnings.append(RunWarning("image.several", text))
    if mask is None:
        mask = torch.zeros(len(images), _EMPTY_MASK_SIDE, _EMPTY_MASK_SIDE)
    else:
        images = _apply_background(name, images, mask, background, run_warnings)
    return LoadedImage(images, mask, tuple(run_warnings))


def open_image(path: str | os.PathLike, stream: IO[bytes] | None = None) -> Image.Image:
    """Open the first image of a file with Pillow, decoded, not yet turned as EXIF says.

    Args:
        path: The file, or a name for messages if `stream` is given.
        stream: The content.

    Raises:
        ImageError: As `load_image`.
    """
    name = display_name(path)
    with _refuse_truncated_files(), stream or _open_file(Path(path), name) as file, _translate_pillow_errors(name):
        image = _open_image(name, file)
        image.load()
        return image


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Read the width and height of an image file from its header, upright as EXIF says. Raises as `load_image`."""
    name = display_name(path)
    with _open_file(Path(path), name) as stream, _translate_pillow_errors(name):
        image = _open_header(name, stream)
        tags = getattr(image, "tag_v2", {})  # of TIFF, where the size of newer Pillow is upright already
        width, height = (tags.get(tag, side) for tag, side in zip(_TIFF_SIZE, image.size, strict=True))
        return (height, width) if image.getexif().get(_ORIENTATION, 1) >= _FIRST_TURNED else (width, height)


def frame_durations(path: str | os.PathLike) -> tuple[tuple[int, int], list[int]]:
    """Read the width and height of an image file, and the milliseconds of each of its images. 0 is a still image.

    Raises as `load_image`.
    """
    from PIL import ImageSequence

    name = display_name(path)
    with _refuse_truncated_files(), _open_file(Path(path), name) as stream, _translate_pillow_errors(name):
        image = _open_header(name, stream)
        durations: list[int] = []
        for frame in ImageSequence.Iterator(image):
            _check_count(name, len(durations) + 1)
            frame.load()  # WebP has no duration before
            durations.append(round(frame.info.get("duration", 0)))
        return image.size, durations


def _decode(name: str, stream: IO[bytes], run_warnings: list[RunWarning]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images (B, H, W, 3) and mask (B, H, W), or None without transparency. Append to `run_warnings`."""
    image = _open_image(name, stream)
    orientation = image.getexif().get(_ORIENTATION, 1)
    has_16bit = is_16bit(image, stream)
    run_warnings += color_space_warnings(name, image)
    frames = _same_size_frames(name, image, run_warnings)
    if has_16bit and len(frames) == 1:
        samples = read_16bit(stream, str(image.format), orientation, frames[0])
        if samples is not None:
            return _16bit_to_tensors(samples)
    if has_16bit:
        text = f"{name} has 16 bits per channel in a form that is read with 8 bits only. Save it as plain PNG."
        run_warnings.append(RunWarning("image.depth", text))
    return _frames_to_tensors(name, frames, run_warnings)


def display_name(path: str | os.PathLike) -> str:
    """Return a path in quotes for messages. Bytes that are not UTF-8 become escapes, so that it can be printed."""
    return f'"{os.fsencode(path).decode("utf-8", "backslashreplace")}"'


def _apply_background(
    name: str,
    images: torch.Tensor,
    mask: torch.Tensor,
    background: Background | None,
    run_warnings: list[RunWarning],
) -> torch.Tensor:
    if not mask.any():
        return images
    if background != KEEP:
        if background is None:
            text = (
                f"{name} has transparent parts. The colors stored there are used, as in ComfyUI. `background` white "
                "gives them a color, and `background` keep hides this warning."
            )
        else:
            text = f"{name} has transparent parts, which were filled with {format_color(background)}."
        run_warnings.append(RunWarning("image.transparent", text))
    return composite(images, mask, background or KEEP)


def _frames_to_tensors(
    name: str, frames: list[Image.Image], run_warnings: list[RunWarning]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convert upright frames of one size to images (B, H, W, 3) and mask (B, H, W), None if all are opaque."""
    import numpy as np
    import torch

    width, height = frames[0].size
    images = np.empty((len(frames), height, width, 3), np.float32)
    for frame, out in zip(frames, images, strict=True):
        run_warnings += write_colors(name, frame, out)
    masks = [transparency(frame) for frame in frames]
    if all(mask is None for mask in masks):
        return torch.from_numpy(images), None
    opaque = np.zeros((height, width), np.float32)
    mask = np.stack([opaque if mask is None else mask for mask in masks])
    return torch.from_numpy(images), torch.from_numpy(mask)


def _16bit_to_tensors(samples: np.ndarray) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convert samples (H, W, 3 or 4) uint16 to images (1, H, W, 3) and mask (1, H, W)."""
    import numpy as np
    import torch

    images = np.divide(samples[..., :3], np.float32(WHITE_16BIT), dtype=np.float32)
    if samples.shape[2] == 3:
        return torch.from_numpy(images)[None], None
    alpha = np.divide(samples[..., 3], np.float32(WHITE_16BIT), dtype=np.float32)
    return torch.from_numpy(images)[None], torch.from_numpy(1 - alpha)[None]


def pillow_errors() -> tuple[type[Exception], ...]:
    """Return the errors that Pillow raises for a damaged file, found by fuzzing files of every format."""
    from PIL import Image

    unexpected = (SyntaxError, ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, struct.error)
    return (OSError, EOFError, Image.DecompressionBombError, *unexpected)


_pillow_lock = threading.Lock()


@contextlib.contextmanager
def _refuse_truncated_files() -> Iterator[None]:
    """Turn off Pillow's LOAD_TRUNCATED_IMAGES, which ComfyUI sets. It is global, so one thread loads at a time."""
    from PIL import ImageFile

    with _pillow_lock:
        previous = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = previous


@contextlib.contextmanager
def _translate_pillow_errors(name: str) -> Iterator[None]:
    """Convert Pillow's errors to ImageError."""
    from PIL import Image

    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image of a supported kind. Save it as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; "
            "8-bit PNG always works.",
            code="image.unsupported",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name, "far more", MAX_PIXELS) from error
    except pillow_errors() as error:
        raise ImageError(
            f"{name} is truncated or damaged. Download or export it again.", code="image.damaged"
        ) from error


def _open_image(name: str, stream: IO[bytes]) -> Image.Image:
    """Open an image that can be decoded in bounded time."""
    check_jpeg_scans(name, stream)
    return _open_header(name, stream)


def _open_header(name: str, stream: IO[bytes]) -> Image.Image:
    """Open an image by content and check the size in its header."""
    from PIL import Image

    Image.init()
    formats = [known for known in FORMATS if known in Image.OPEN]
    if _is_heif(stream):
        _register_heif(name)
        formats.append("HEIF")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
        image = Image.open(stream, formats=formats)
    _check_size(name, image.width * image.height, MAX_PIXELS, f"{image.width}x{image.height}")
    if image.format in ("PNG", "WEBP", "AVIF"):  # their headers hold the count; others are counted while reading
        count = getattr(image, "n_frames", 1)
        _check_count(name, count)
        _check_size(name, count * image.width * image.height, MAX_TOTAL_PIXELS, f"{count} frames")
    return image


def _is_heif(stream: IO[bytes]) -> bool:
    """Return True for HEIC and HEIF, but not for AVIF, which has the same container. The stream is at its start."""
    head = stream.read(64)
    stream.seek(0)
    length = int.from_bytes(head[:4], "big")
    brands = [head[start : start + 4] for start in (8, *range(16, min(length, 64), 4))]
    return head[4:8] == b"ftyp" and b"avif" not in brands and any(brand in HEIF_BRANDS for brand in brands)


def _register_heif(name: str) -> None:
    """Let Pillow open HEIF with pillow-heif. Raises ImageError if it is not installed."""
    from PIL import Image

    if "HEIF" in Image.OPEN:
        return
    if not has_extra("pillow_heif"):
        raise ImageError(
            f"{name} is a HEIC photograph, which needs a reader. Run pip install pillow-heif, or save it as JPEG.",
            code="image.unsupported",
        )
    import pillow_heif

    pillow_heif.register_heif_opener()


def _open_file(path: Path, name: str) -> IO[bytes]:
    try:
        stream = open_regular_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"there is no image file {name}. Check the path.", code="image.missing") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(
            f"the image file {name} cannot be opened: {reason}. Use a file that you may read.", code="image.unreadable"
        ) from error
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_FILE_BYTES:
        stream.close()
        raise ImageError(
            f"{name} must have at most {MAX_FILE_BYTES} bytes, got {size}. Make it smaller.", code="image.too_large"
        )
    return stream


def _same_size_frames(name: str, image: Image.Image, run_warnings: list[RunWarning]) -> list[Image.Image]:
    """Return the frames that have the first one's size, upright. Of an MPO (several JPEGs of a camera) the first."""
    from PIL import ImageOps, ImageSequence

    frames: list[Image.Image] = []
    pixels = skipped = 0
    for count, frame in enumerate(ImageSequence.Iterator(image), 1):
        _check_count(name, count)
        _check_size(name, frame.width * frame.height, MAX_PIXELS, f"{frame.width}x{frame.height}")
        pixels += frame.width * frame.height
        _check_size(name, pixels, max(MAX_TOTAL_PIXELS, MAX_PIXELS), f"{count} frames")
        upright = ImageOps.exif_transpose(frame)
        upright.load()
        if not frames or upright.size == frames[0].size:
            frames.append(upright)
        else:
            skipped += 1
        if image.format == "MPO":
            break
    if skipped:
        text = f"{name}: {skipped} of its images have another size than the first and are skipped."
        run_warnings.append(RunWarning("image.several", text))
    return frames


def _check_count(name: str, count: int) -> None:
    if count > MAX_FRAMES:
        raise ImageError(
            f"{name} must contain at most {MAX_FRAMES} images, and has more. Extract the ones that you need.",
            code="image.too_large",
        )


def _check_size(name: str, pixels: int, limit: int, size: str) -> None:
    if pixels > limit:
        raise _too_large(name, size, limit)


def _too_large(name: str, size: str, limit: int) -> ImageError:
    return ImageError(
        f"{name} must have at most {limit // 1_000_000} megapixels, got {size}. Make it smaller; videos have 1024x576.",
        code="image.too_large",
    )


def as_images(
    image: str | os.PathLike | Image.Image | np.ndarray | torch.Tensor, background: Background = KEEP
) -> tuple[torch.Tensor, tuple[RunWarning, ...]]:
    """Convert a file, a PIL image, an array or a tensor to images (B, H, W, 3) float32 in [0, 1], and warnings.

    Args:
        image: Arrays and tensors are (H, W, C) or (B, H, W, C) with C 1, 3 or 4, uint8 or floats in [0, 1]. PIL images
            have 8 bits per channel. Not modified.
        background: Color behind transparent parts, see `load_image`. Also applied to arrays with four channels.

    Raises:
        ImageError: Anything else; scales are not guessed.
    """
    from PIL import Image, ImageOps

    from ..utils.tensor_checks import check_images

    if isinstance(image, (str, os.PathLike)):
        loaded = load_image(image, background)
        return check_images(loaded.images), loaded.warnings
    run_warnings: list[RunWarning] = []
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ImageError(f'a PIL image of mode "{image.mode}" has no defined scale. Pass the path of its file.')
        with _translate_pillow_errors("the PIL image"):
            images, mask = _frames_to_tensors("the PIL image", [ImageOps.exif_transpose(image)], run_warnings)
    else:
        images, mask = _array_to_tensors(image)
    if mask is not None and background != KEEP:
        images = _apply_background("the image", images, mask, background, run_warnings)
    return check_images(images), tuple(run_warnings)


def _array_to_tensors(image: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return images (B, H, W, C) float32 in [0, 1], and a mask (B, H, W) if there is an alpha channel.

    Raises ImageError for other types and scales. The shape is checked by the caller.
    """
    import numpy as np
    import torch

    from ..utils.tensor_checks import as_float32

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 and image.dtype.kind != "f":
            raise ImageError(f"an array must be uint8 or floats in [0, 1], got {image.dtype}. Convert it first.")
        image = torch.from_numpy(np.array(image, np.uint8 if image.dtype == np.uint8 else np.float32, order="C"))
    if not isinstance(image, torch.Tensor):
        raise ImageError(f"an image must be a file, a PIL image, an array or a tensor, got {type(image).__name__}.")
    if image.dtype == torch.uint8 and image.device.type != "meta" and image.layout == torch.strided:
        images = image.to("cpu", torch.float32) / 255.0
    else:
        images = as_float32(image, "an image", ImageError)
        low, high = map(float, torch.aminmax(images)) if images.numel() else (0.0, 1.0)
        if low < MIN_FLOAT or high > MAX_FLOAT:
            raise ImageError(
                f"an image array must be uint8 or floats in [0, 1], got {image.dtype} from {low:g} to {high:g}. "
                "Scale it to [0, 1].",
                code="image.range",
            )
    images = images[None] if images.ndim == 3 else images
    if images.ndim == 4 and images.shape[-1] == 4:
        return images[..., :3], 1 - images[..., 3]
    return images, None
