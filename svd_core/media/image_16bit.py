"""All 16 bits of pictures with several channels, of which Pillow gives 8: decoded by PyAV, compared with Pillow."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_TIFF_WIDTH, _TIFF_HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION = 256, 257, 258, 274  # TIFF 6.0, section 8
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
        before = stream.tell()
        stream.seek(_PNG_BIT_DEPTH_AT)
        depth = stream.read(1)
        stream.seek(before)
        return depth == b"\x10"
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


def grey_with_alpha(stream: IO[bytes]) -> tuple[int, int] | None:
    """(width, height) of a TIFF of one picture with 16 bits of grey and of alpha, which Pillow does not know; of any
    other file None. From the header; may raise what Pillow raises over a damaged one."""
    tags = _tiff_tags(stream)
    if not tags or set(tags.get(_BITS_PER_SAMPLE, ())) != {16} or len(tags[_BITS_PER_SAMPLE]) != 2 or tags.next:
        return None
    return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])


def read_grey_with_alpha(stream: IO[bytes]) -> np.ndarray | None:
    """(H, W, 4) uint16, upright, of what `grey_with_alpha` found; None when it is damaged."""
    stored = _decode(stream, "tiff_pipe")
    if stored is None or stored.shape[2] != 2:
        return None
    return _TURNS.get(_tiff_tags(stream).get(_ORIENTATION, 1), _TURNS[1])(stored[..., [0, 0, 0, 1]])


def _tiff_tags(stream: IO[bytes]) -> Any:
    """The first directory of a TIFF, Pillow's ImageFileDirectory_v2; None for what is no TIFF."""
    from PIL import TiffImagePlugin

    before = stream.tell()
    try:
        stream.seek(0)
        head = stream.read(8)
        if head[:4] not in (b"II*\0", b"MM\0*"):
            return None
        tags = TiffImagePlugin.ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
        return tags
    finally:
        stream.seek(before)


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
