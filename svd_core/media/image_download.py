"""Download an image from an http(s) address, with limits on size and time."""

from __future__ import annotations

import io
import time
from typing import IO

from ..errors import ImageError
from .image_io import MAX_FILE_BYTES

TIMEOUT = 60.0
"""Seconds that a download may take in all."""
BLOCK = 1 << 20
"""Bytes that are read at a time."""


def is_url(name: str) -> bool:
    """Return True for an http(s) address."""
    return name.lower().startswith(("http://", "https://"))


def download_image(url: str) -> IO[bytes]:
    """Return the content of a URL of at most `MAX_FILE_BYTES` that answers within `TIMEOUT` seconds.

    Raises:
        ImageError: It is too large, too slow or not there.
    """
    import urllib.error
    import urllib.request

    deadline = time.monotonic() + TIMEOUT
    content = io.BytesIO()
    request = urllib.request.Request(url, headers={"User-Agent": "svd-stages"})  # noqa: S310 - http(s) only
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - http(s) only
            while block := answer.read1(BLOCK):
                content.write(block)
                if content.tell() > MAX_FILE_BYTES:
                    raise ImageError(f'"{url}" must have at most {MAX_FILE_BYTES} bytes', code="image.too_large")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took more than {TIMEOUT:g} seconds")
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
        raise ImageError(
            f'"{url}" cannot be downloaded: {reason}. Check the address, or download it in a browser.',
            code="image.download",
        ) from error
    content.seek(0)
    return content
