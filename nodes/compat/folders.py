"""Resolve file names of graphs inside the runtime's folders, never outside them."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from ...svd_core.errors import ImageError, printable, quoted
from ...svd_core.runtime.runtime import Folder, get_runtime
from ...svd_core.utils.safe_paths import is_valid_file_name, resolve_inside

_ANNOTATIONS: dict[str, Folder] = {"[input]": "input", "[output]": "output", "[temp]": "temp"}


def input_images() -> list[str]:
    """Return the sorted names of the images directly in the input folder, or none if there is no such folder."""
    folder = get_runtime().folder("input")
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and _is_image_name(entry.name))


def annotated_file(name: str | None) -> Path:
    """Return the path of an image in the input folder, or in that of an annotation, as in "x.png [output]".

    Raises:
        ImageError: The file, after following links, is outside the folder (code `image.outside`) or does not exist
            (`image.missing`).
    """
    if not isinstance(name, str):  # VALIDATE_INPUTS cannot distinguish a null in the graph from a linked name
        value = "null" if name is None else repr(name)
        raise ImageError(f"image must be the name of a file, got {value}", code="image.missing")
    kind: Folder = "input"
    bare = name
    for annotation, annotated in _ANNOTATIONS.items():
        if name.endswith(annotation):
            kind, bare = annotated, name[: -len(annotation)].removesuffix(" ")
    folder = get_runtime().folder(kind)
    path = resolve_inside(folder, bare if is_valid_file_name(bare) else "")
    if path is None:
        raise ImageError(
            f'"{printable(name)}" is outside the {kind} folder. '
            f"Copy the image into {quoted(folder)} and use its name there.",
            code="image.outside",
        )
    if not os.path.isfile(path):
        fix = "give its folder as `input_dir`" if kind == "input" else "check the name"
        raise ImageError(
            f'there is no image "{printable(bare)}" in the {kind} folder {quoted(folder)}. Save it there under this '
            f"name, or {fix}.",
            code="image.missing",
        )
    return Path(path)


def _is_image_name(name: str) -> bool:
    kind, _ = mimetypes.guess_type(name, strict=False)
    return kind is not None and kind.startswith("image/")
