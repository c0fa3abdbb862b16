"""All 16 bits of pictures with several channels, of which Pillow gives 8: decoded by PyAV, compared with Pillow."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_BITS_PER_SAMPLE = 258  # TIFF 6.0, section 8
_PNG_BIT_DEPTH_AT = 24  # signature 8, chunk head 8, width 4, height 4: PNG specification, 11.2.1
_DEMUXERS = {"PNG": "png_pipe", "TIFF": "tiff_pipe"}
_CHANNELS = {"ya16": 2, "rgb48": 3, "rgba64": 4}
_TURNS = {  # EXIF 2.32, tag 0x0112: what is to be done with the picture as stored
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def is_deep(picture: Image.Image, stream: IO[bytes]) -> bool:
    """Whether the header tells of 16 bits in each of several channels. Nothing is decoded."""
    if picture.mode not in ("RGB", "RGBA", "LA"):
        return False
    if picture.format == "PNG":
        stream.seek(_PNG_BIT_DEPTH_AT)
        return stream.read(1) == b"\x10"
    bits = getattr(picture, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return picture.format == "TIFF" and set(bits) == {16}


def read_deep(stream: IO[bytes], form: str, orientation: int, shown: Image.Image) -> np.ndarray | None:
    """(H, W, 3 or 4) uint16, upright, of a picture of format `form` that `is_deep`.

    shown  the same picture as Pillow has it, upright, RGB or RGBA with 8 bits. Where its numbers are not the upper
           halves of ours, two decoders do not agree about the file, and None says so; None as well for what PyAV
           cannot read
    """
    import numpy as np

    stored = _decode(stream, _DEMUXERS[form])
    if stored is None:
        return None
    if stored.shape[2] == 2:
        stored = stored[..., [0, 0, 0, 1]]
    upright = _TURNS.get(orientation, _TURNS[1])(stored)
    seen = np.asarray(shown.convert("RGBA" if stored.shape[2] == 4 else "RGB"))
    return upright if np.array_equal(upright >> 8, seen) else None


def _decode(stream: IO[bytes], demuxer: str) -> np.ndarray | None:
    """(H, W, channels) uint16 of the first picture, as it is stored; None when it is damaged or of another kind."""
    import av
    import numpy as np
    from av.error import FFmpegError

    stream.seek(0)
    try:
        with av.open(stream, format=demuxer) as container:
            frame = next(container.decode(video=0), None)
    except (FFmpegError, IndexError):
        return None
    name = "" if frame is None else frame.format.name
    channels = _CHANNELS.get(name[:-2])
    if frame is None or channels is None:
        return None
    plane = frame.planes[0]
    rows = np.frombuffer(plane, ">u2" if name.endswith("be") else "<u2").reshape(frame.height, plane.line_size // 2)
    packed = rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    return packed.astype(np.uint16)
