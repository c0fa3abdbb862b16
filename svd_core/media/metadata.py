"""The graph inside a result: as the texts that ComfyUI puts into its files, and read back.

metadata: names -> what can be JSON. ComfyUI's names are "prompt" (the API graph) and "workflow" (the UI graph).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ImageError, OutputError
from ..utils.safe_open import open_regular_file
from .image_io import pillow_errors

Metadata = Mapping[str, Any]

GRAPH_NAMES = ("prompt", "workflow")

_EXIF_PROMPT = 0x0110  # ComfyUI SaveAnimatedWEBP: the prompt in Model, the others in Make and the tags below it
_EXIF_OTHERS = 0x010F


def json_texts(metadata: Metadata | None) -> dict[str, str]:
    """Each value as JSON text in ASCII. Raises OutputError for what JSON cannot hold."""
    try:
        return {name: json.dumps(value, allow_nan=False) for name, value in (metadata or {}).items()}
    except (TypeError, ValueError) as error:
        raise OutputError(
            f"the graph cannot be put into the file as JSON: {error}. Graphs hold text, finite numbers, lists and "
            f"objects only.",
            code="output.metadata",
        ) from error


def exif_texts(metadata: Metadata | None) -> dict[int, str]:
    """ComfyUI's EXIF tags: "prompt:{json}" in 0x0110, the others "name:{json}" from 0x010f downwards."""
    texts = json_texts(metadata)
    others = [name for name in texts if name != "prompt"]
    tags = {_EXIF_OTHERS - below: f"{name}:{texts[name]}" for below, name in enumerate(others)}
    if "prompt" in texts:
        tags[_EXIF_PROMPT] = f"prompt:{texts['prompt']}"
    return tags


def read_metadata(path: str | os.PathLike, names: Sequence[str] = GRAPH_NAMES) -> dict[str, str]:
    """Return the texts inside an mp4, webm, png or webp: those of `names` that it holds, not parsed.

    The first bytes decide what kind of file it is, not its name.

    Raises:
        ImageError: The file is missing, unreadable or of another kind.
    """
    path = Path(path)
    try:
        with open_regular_file(path) as stream:
            head = stream.read(12)
        texts = _read_texts(path, head)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}; check the path.", code="image.missing") from error
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read: {error.strerror or error}. Check that it is a file that you may read.",
            code="image.unreadable",
        ) from error
    return {name: texts[name] for name in names if name in texts}


def _read_texts(path: Path, head: bytes) -> dict[str, str]:
    """The texts in a file that begins with `head`, by name."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _read_png_texts(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _read_webp_texts(path)
    if head[4:8] == b"ftyp":
        return _read_video_texts(path, "mp4")
    if head.startswith(b"\x1aE\xdf\xa3"):
        return {name.lower(): text for name, text in _read_video_texts(path, "webm").items()}
    raise ImageError(
        f"{path} is neither an mp4 nor a webm nor a png nor a webp, so it has no graph inside; give a file that "
        f"SaveVideo, SaveImage or SaveAnimatedWEBP wrote.",
        code="image.unsupported",
    )


def _read_png_texts(path: Path) -> dict[str, str]:
    from PIL import Image

    comf = _read_comf_chunks(path)
    with _damage_explained(path, *pillow_errors()), Image.open(path, formats=["PNG"]) as image:
        texts = {str(name): value for name, value in image.info.items() if isinstance(value, str)}
    return {**texts, **comf}


def _read_comf_chunks(path: Path) -> dict[str, str]:
    """The texts of an animated PNG of ComfyUI's: chunks `comf` of "name\\0text".

    Raises ImageError for a file with more in its chunks that are no picture than graphs may have: whoever reads it
    next would take it all into memory.
    """
    found, total = {}, 0
    with open(path, "rb") as stream:
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            size, kind = int.from_bytes(head[:4], "big"), head[4:]
            total += 0 if kind in (b"IDAT", b"fdAT") else size
            if total > _MOST_BESIDE:
                raise _too_large(path)
            if kind == b"comf":
                name, _, text = stream.read(size).decode("latin-1").partition("\0")
                found[name] = text
                size = 0
            stream.seek(size + 4, os.SEEK_CUR)  # and the checksum
    return found


def _read_webp_texts(path: Path) -> dict[str, str]:
    """From the EXIF chunk alone: no picture is decoded."""
    from PIL import Image

    exif = Image.Exif()
    with _damage_explained(path, *pillow_errors()):
        exif.load(_read_exif_chunk(path))
        values = [value for value in exif.values() if isinstance(value, str)]
    named = (value.rstrip("\0").partition(":") for value in values)
    return {name: text for name, _, text in named}


def _read_exif_chunk(path: Path) -> bytes:
    """The EXIF chunk of a RIFF file; empty when there is none."""
    with open(path, "rb") as stream:
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"EXIF":
                if size > _MOST_BESIDE:
                    raise _too_large(path)
                return stream.read(size)
            stream.seek(size + size % 2, os.SEEK_CUR)
    return b""


_MOST_BESIDE = 96 * 2**20
"""Most bytes of a file beside its image: two graphs of 32 MB, and what other programs add."""


def _too_large(path: Path) -> ImageError:
    return ImageError(
        f"{path} has more than {_MOST_BESIDE // 2**20} MB beside its picture; give the .json file of the graph.",
        code="image.too_large",
    )


def _read_video_texts(path: Path, form: str) -> dict[str, str]:
    import av
    from av.error import FFmpegError

    with (
        _damage_explained(path, FFmpegError, UnicodeDecodeError),
        av.open(os.path.abspath(path), format=form) as container,
    ):  # which no protocol's name begins
        return dict(container.metadata)


@contextlib.contextmanager
def _damage_explained(path: Path, *damage: type[Exception]) -> Iterator[None]:
    try:
        yield
    except damage as error:
        raise ImageError(
            f"{path} is damaged or not what it says it is; make it again, or fetch another copy.",
            code="image.unreadable",
        ) from error
