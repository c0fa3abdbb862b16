"""Decode 16-bit RGB, RGBA and grey+alpha images with PyAV, because Pillow reduces them to 8 bits."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8
_PNG_BIT_DEPTH_OFFSET = 24  # signature 8, chunk head 8, width 4, height 4: PNG specification, 11.2.1
_DEMUXERS = {"PNG": "png_pipe", "TIFF": "tiff_pipe"}
_CHANNELS = {"ya16": 2, "rgb48": 3, "rgba64": 4}


def is_16bit(image: Image.Image, stream: IO[bytes]) -> bool:
    """Return True if the header declares 16 bits in each of several channels. Nothing is decoded."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "PNG":
        position = stream.tell()
        stream.seek(_PNG_BIT_DEPTH_OFFSET)
        depth = stream.read(1)
        stream.seek(position)
        return depth == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return image.format == "TIFF" and set(bits) == {16}


def read_16bit(stream: IO[bytes], image_format: str, orientation: int, reference: Image.Image) -> np.ndarray | None:
    """Return the samples (H, W, 3 or 4) uint16, upright, of an image for which `is_16bit` is true.

    Args:
        stream: The file.
        image_format: PNG or TIFF.
        orientation: EXIF orientation, 1 to 8.
        reference: The same image as Pillow decodes it, upright, RGB or RGBA with 8 bits.

    Returns:
        None if PyAV cannot decode the file, or if its upper 8 bits differ from `reference`.
    """
    import numpy as np

    samples = _decode(stream, _DEMUXERS[image_format])
    if samples is None:
        return None
    if samples.shape[2] == 2:
        samples = samples[..., [0, 0, 0, 1]]
    if orientation in (5, 6, 7, 8):  # EXIF 2.32, tag 0x0112
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    eight_bit = np.asarray(reference.convert("RGBA" if samples.shape[2] == 4 else "RGB"))
    return samples if np.array_equal(samples >> 8, eight_bit) else None


def _decode(stream: IO[bytes], demuxer: str) -> np.ndarray | None:
    """Return (H, W, channels) uint16 of the first image as stored; None if it is damaged or of another kind."""
    import av
    import numpy as np
    from av.error import FFmpegError

    stream.seek(0)
    try:
        with av.open(stream, format=demuxer) as container:
            frame = next(container.decode(video=0), None)
    except (FFmpegError, IndexError):
        return None
    pixel_format = "" if frame is None else frame.format.name
    channels = _CHANNELS.get(pixel_format[:-2])
    if frame is None or channels is None:
        return None
    plane = frame.planes[0]
    dtype = ">u2" if pixel_format.endswith("be") else "<u2"
    rows = np.frombuffer(plane, dtype).reshape(frame.height, plane.line_size // 2)
    packed = rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    return packed.astype(np.uint16)
