"""Limit the decoding time of JPEG files. Neither Pillow nor libjpeg limits the number of scans."""

from __future__ import annotations

import re
from typing import IO

from ..errors import ImageError

MAX_SCANS = 100
"""Scans of a JPEG. Each one is decoded over the full image; progressive files have about ten."""

MAX_SEGMENTS = 5000
"""Segments of a JPEG: scans, and up to 255 for an embedded color profile."""

_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd8])")
"""Markers followed by a length. Entropy-coded data has 0xff only before 0x00 and restart markers (0xd0 to 0xd7)."""


def check_jpeg_scans(name: str, stream: IO[bytes]) -> None:
    """Raise ImageError for a JPEG with too many scans or segments; it would take minutes to open. Rewinds `stream`.

    Counts the SOS markers before the first EOI (ITU-T T.81, annex B). Files of other formats pass.
    """
    is_jpeg = stream.read(2) == b"\xff\xd8"
    content = stream.read() if is_jpeg else b""
    stream.seek(0)
    scans = position = 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(content, position)
        if marker is None or marker[1] == b"\xd9":
            return
        scans += marker[1] == b"\xda"
        if scans > MAX_SCANS:
            break
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    raise ImageError(
        f"{name} must be a JPEG of at most {MAX_SCANS} scans and {MAX_SEGMENTS} segments, got more. Save it again.",
        code="image.too_large",
    )
