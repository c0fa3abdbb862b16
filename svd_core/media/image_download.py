"""Download an image from an http(s) address, with limits on size and time."""

from __future__ import annotations

import io
import threading
from typing import IO, Any

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

    Redirects are followed to http(s) only.

    Raises:
        ImageError: It is too large, too slow, not complete or not there.
    """
    from http.client import HTTPException

    result: list[IO[bytes] | BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            result.append(_read(url, stop))
        except BaseException as error:  # raised below
            result.append(error)

    thread = threading.Thread(target=work, daemon=True)  # a server can answer by a byte a second: no timeout sees that
    thread.start()
    try:
        thread.join(TIMEOUT)
    finally:
        stop.set()
    content = result[0] if result else TimeoutError(f"it took more than {TIMEOUT:g} seconds")
    if isinstance(content, (OSError, ValueError, HTTPException)) and not isinstance(content, ImageError):
        raise ImageError(
            f'"{url}" cannot be downloaded: {_reason(content)}. Check the address, or download it in a browser.',
            code="image.download",
        ) from content
    if isinstance(content, BaseException):
        raise content
    return content


def _reason(error: Exception) -> object:
    from urllib.error import HTTPError

    is_answer = isinstance(error, HTTPError)
    return error if is_answer else getattr(error, "reason", None) or str(error) or type(error).__name__


def _read(url: str, stop: threading.Event) -> IO[bytes]:
    """Read the content of a URL. Raises ImageError, OSError, ValueError or HTTPException."""
    import urllib.request

    class OnlyHttp(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if not is_url(newurl):
                raise ValueError("it leads to an address that is not http(s)")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    content = io.BytesIO()
    request = urllib.request.Request(url, headers={"User-Agent": "svd-stages"})  # noqa: S310 - http(s) only
    with urllib.request.build_opener(OnlyHttp).open(request, timeout=TIMEOUT) as answer:
        while (block := answer.read1(BLOCK)) and not stop.is_set():
            content.write(block)
            if content.tell() > MAX_FILE_BYTES:
                raise ImageError(f'"{url}" must have at most {MAX_FILE_BYTES} bytes', code="image.too_large")
        expected = answer.headers.get("Content-Length", "")
    if expected.isdigit() and content.tell() != int(expected):
        raise ValueError(f"{content.tell()} of {expected} bytes arrived")
    content.seek(0)
    return content
