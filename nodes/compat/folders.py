"""Names in saved graphs to files in the host's folders, and never to files outside them."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from ...svd_core.errors import ImageError, printable
from ...svd_core.runtime.runtime import Folder, get_runtime
from ...svd_core.utils.safe_paths import is_valid_file_name, resolve_inside

_ANNOTATIONS: dict[str, Folder] = {"[input]": "input", "[output]": "output", "[temp]": "temp"}


def input_pictures() -> list[str]:
    """The pictures directly in the input folder, by name, sorted; none when the folder is not there."""
    folder = get_runtime().folder("input")
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and _is_picture_name(entry.name))


def annotated_file(name: str | None) -> Path:
    """The file that `name` means: in the input folder, or in the one said as in "x.png [output]".

    Links are followed, and where they end must lie inside the folder too. Raises ImageError when it does not, or when
    there is no such file.
    """
    if name is None:  # null in the graph looks like a link to VALIDATE_INPUTS, which therefore lets it pass
        raise ImageError("the picture has no name, it is null; give the name of a file.", code="image.missing")
    if not isinstance(name, str):
        raise ImageError(
            f"the name of a picture is a text, got {name!r}; give the name of a file.", code="image.missing"
        )
    kind: Folder = "input"
    bare = name
    for annotation, annotated in _ANNOTATIONS.items():
        if name.endswith(annotation):
            kind, bare = annotated, name[: -len(annotation)].removesuffix(" ")
    folder = get_runtime().folder(kind)
    path = resolve_inside(folder, bare if is_valid_file_name(bare) else "")
    if path is None:
        raise ImageError(
            f'"{printable(name)}" lies outside the {kind} folder; copy the picture into {folder} and give its name '
            "there.",
            code="image.outside",
        )
    if not os.path.isfile(path):
        raise ImageError(
            f'there is no picture "{printable(bare)}" in the {kind} folder {folder}; put it there, or check the name.',
            code="image.missing",
        )
    return Path(path)


def _is_picture_name(name: str) -> bool:
    kind, _ = mimetypes.guess_type(name, strict=False)
    return kind is not None and kind.startswith("image/")
