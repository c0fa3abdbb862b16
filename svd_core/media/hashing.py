"""sha256 of files and of the frames in them: what a result was made from, and whether another one shows the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ImageError

BLOCK = 8 * 1024 * 1024
MOVING = (".mp4", ".webm", ".mkv", ".mov")
STILL = (".png", ".webp", ".jpg", ".jpeg", ".gif")


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda read: None) -> str:
    """The sha256 of a file's bytes, in hex. `on_bytes` is called with how many were read so far; raising stops it."""
    digest, read = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as stream:
        size = min(BLOCK, os.fstat(stream.fileno()).st_size + 1)  # room for 8 MB costs more than to hash a small file
        while block := stream.read(size):
            digest.update(block)
            read += len(block)
            on_bytes(read)
    return digest.hexdigest()


def frames_sha256(path: Path) -> str | None:
    """The sha256 of what a video or picture shows: size and RGB bytes of each frame in order; None for other files.

    Container, metadata and dates do not count, so two runs of one graph have the same. Raises ImageError.
    """
    frames = frames_of(path)
    if frames is None:
        return None
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.shape[1]}x{frame.shape[0]}:".encode())
        digest.update(frame.tobytes())
    return digest.hexdigest()


def frames_of(path: Path) -> Iterator[Any] | None:
    """The frames of a video or picture, (H, W, 3) uint8 each; None for other files. Iterating raises ImageError."""
    reader = {**dict.fromkeys(MOVING, _moving), **dict.fromkeys(STILL, _still)}.get(path.suffix.lower())
    return None if reader is None else reader(path)


def _moving(path: Path) -> Iterator[Any]:
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (FFmpegError, IndexError) as error:
        raise ImageError(f"{path} cannot be decoded; make it again.", code="image.unreadable") from error


def _still(path: Path) -> Iterator[Any]:
    import numpy as np
    from PIL import Image, ImageSequence

    from .image_io import pillow_damage

    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield np.asarray(frame.convert("RGB"))
    except pillow_damage() as error:
        raise ImageError(f"{path} cannot be decoded; make it again.", code="image.unreadable") from error
