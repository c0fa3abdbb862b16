"""Write and read the graph that ComfyUI embeds in images and videos.

metadata: names -> JSON-serializable values. ComfyUI's names are "prompt" (API format) and "workflow" (UI format).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ImageError, OutputError, quoted
from ..utils.safe_open import open_regular_file
from .image_io import pillow_errors

Metadata = Mapping[str, Any]

GRAPH_NAMES = ("prompt", "workflow")

_EXIF_PROMPT = 0x0110  # ComfyUI SaveAnimatedWEBP: the prompt in Model, other names in Make and the tags below it
_EXIF_OTHER_NAMES = 0x010F

_MAX_METADATA_BYTES = 96 * 2**20
"""Bytes of a file that are not image data: two graphs of 32 MB, and what other programs add."""


def json_texts(metadata: Metadata | None) -> dict[str, str]:
    """Return each value as JSON in ASCII. Raise OutputError if a value is not JSON-serializable."""
    try:
        return {name: json.dumps(value, allow_nan=False) for name, value in (metadata or {}).items()}
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"the graph cannot be saved as JSON: {error}. Graphs may contain text, finite numbers, lists and objects.",
            code="output.metadata",
        ) from error


def exif_texts(metadata: Metadata | None) -> dict[int, str]:
    """Return ComfyUI's EXIF tags: "prompt:{json}" in 0x0110, other names as "name:{json}" from 0x010f downwards."""
    texts = json_texts(metadata)
    other_names = [name for name in texts if name != "prompt"]
    tags = {_EXIF_OTHER_NAMES - index: f"{name}:{texts[name]}" for index, name in enumerate(other_names)}
    if "prompt" in texts:
        tags[_EXIF_PROMPT] = f"prompt:{texts['prompt']}"
    return tags


def read_metadata(path: str | os.PathLike, names: Sequence[str] = GRAPH_NAMES) -> dict[str, str]:
    """Return the embedded texts `names` of an mp4, webm, png or webp, as far as they exist. They are not parsed.

    The format is detected from the first bytes.

    Raises:
        ImageError: The file is missing, unreadable or of another kind.
    """
    path = Path(path)
    try:
        with open_regular_file(path) as stream:
            head = stream.read(12)
        texts = _read_texts(path, head)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {quoted(path)}. Check the path.", code="image.missing") from error
    except OSError as error:
        raise ImageError(
            f"{quoted(path)} cannot be read: {error.strerror or error}. Use a file that you may read.",
            code="image.unreadable",
        ) from error
    return {name: texts[name] for name in names if name in texts}


def _read_texts(path: Path, head: bytes) -> dict[str, str]:
    """Return the texts of a file that begins with `head`, by name."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png_texts(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _read_webp_texts(path)
    if head[4:8] == b"ftyp":
        return _read_video_texts(path, "mp4")
    if head.startswith(b"\x1aE\xdf\xa3"):
        return {name.lower(): text for name, text in _read_video_texts(path, "webm").items()}
    raise ImageError(
        f"{quoted(path)} must be an mp4, webm, png or webp to contain a graph. Use a file that SaveVideo, SaveImage or "
        "SaveAnimatedWEBP wrote.",
        code="image.unsupported",
    )


def _read_png_texts(path: Path) -> dict[str, str]:
    from PIL import Image

    comf = _read_comf_chunks(path)
    with _translate_errors(path, *pillow_errors()), Image.open(path, formats=["PNG"]) as image:
        texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    return {**texts, **comf}


def _read_comf_chunks(path: Path) -> dict[str, str]:
    """Return the texts of ComfyUI's animated PNGs: `comf` chunks of "name\\0text".

    Raises ImageError if the chunks without image data are too large; Pillow would read them into memory.
    """
    texts, total = {}, 0
    with open(path, "rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            total += 0 if kind in (b"IDAT", b"fdAT") else size
            if total > _MAX_METADATA_BYTES:
                raise _too_large(path)
            if kind == b"comf":
                name, _, text = stream.read(size).decode("latin-1").partition("\0")
                texts[name] = text
                size = 0
            stream.seek(size + 4, os.SEEK_CUR)  # 4 bytes of checksum
    return texts


def _read_webp_texts(path: Path) -> dict[str, str]:
    """Read the EXIF chunk. No image is decoded."""
    from PIL import Image

    exif = Image.Exif()
    with _translate_errors(path, *pillow_errors()):
        exif.load(_read_exif_chunk(path))
        values = [value for value in exif.values() if isinstance(value, str)]
    parts = (value.rstrip("\0").partition(":") for value in values)
    return {name: text for name, _, text in parts}


def _read_exif_chunk(path: Path) -> bytes:
    """Return the EXIF chunk of a RIFF file, empty if there is none."""
    with open(path, "rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"EXIF":
                if size > _MAX_METADATA_BYTES:
                    raise _too_large(path)
                return stream.read(size)
            stream.seek(size + size % 2, os.SEEK_CUR)
    return b""


def _too_large(path: Path) -> ImageError:
    return ImageError(
        f"{quoted(path)} must have at most {_MAX_METADATA_BYTES // 2**20} MB of metadata, got more. "
        "Use the graph as .json.",
        code="image.too_large",
    )


def _read_video_texts(path: Path, container_format: str) -> dict[str, str]:
    import av
    from av.error import FFmpegError

    absolute = os.path.abspath(path)  # a relative one could begin with the name of a protocol, as in http:a.mp4
    with _translate_errors(path, FFmpegError, UnicodeDecodeError), av.open(absolute, format=container_format) as file:
        return dict(file.metadata)


@contextlib.contextmanager
def _translate_errors(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise ImageError(
            f"{quoted(path)} is damaged or has another format than its first bytes say. Make or download it again.",
            code="image.unreadable",
        ) from error
