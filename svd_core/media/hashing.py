"""Compute sha256 of files and of the decoded frames of images and videos."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ImageError, quoted

BLOCK_BYTES = 8 * 1024 * 1024
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov")
IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg", ".gif")


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda done: None) -> str:
    """Return the sha256 of a file in hex. `on_bytes` gets the number of bytes read so far and may raise to stop."""
    digest, done = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as stream:
        size = min(BLOCK_BYTES, os.fstat(stream.fileno()).st_size + 1)  # a large buffer is slow for small files
        while block := stream.read(size):
            digest.update(block)
            done += len(block)
            on_bytes(done)
    return digest.hexdigest()


def frames_sha256(path: Path) -> str | None:
    """Return the sha256 of the size and RGB bytes of each frame of a video or image, or None for other files.

    Container and metadata do not count, so that two runs of one graph have the same hash.

    Raises:
        ImageError: The file cannot be decoded.
    """
    frames = read_frames(path)
    if frames is None:
        return None
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.shape[1]}x{frame.shape[0]}:".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()


def read_frames(path: Path) -> Iterator[Any] | None:
    """Iterate over the frames of a video or image, (H, W, 3) uint8 each. None for other files.

    Raises:
        ImageError: The file cannot be decoded; raised while iterating.
    """
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _read_video(path)
    return _read_image(path) if suffix in IMAGE_SUFFIXES else None


def _read_video(path: Path) -> Iterator[Any]:
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (FFmpegError, IndexError) as error:
        raise ImageError(f"{quoted(path)} cannot be decoded. Make it again.", code="image.unreadable") from error


def _read_image(path: Path) -> Iterator[Any]:
    import numpy as np
    from PIL import Image, ImageSequence

    from .image_io import pillow_errors

    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield np.asarray(frame.convert("RGB"))
    except pillow_errors() as error:
        raise ImageError(f"{quoted(path)} cannot be decoded. Make it again.", code="image.unreadable") from error
