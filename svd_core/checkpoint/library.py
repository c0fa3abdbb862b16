"""Which checkpoints the user has, and where: names for the combo, paths for the loader. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, nearest

EMBEDDED = "svd-nano"
"""The built-in demonstration model: a name, not a file."""


@dataclass(frozen=True)
class ModelLibrary:
    """Folders with one-file checkpoints, and folders with diffusers folders in them."""

    checkpoint_folders: tuple[Path, ...] = ()
    diffusers_folders: tuple[Path, ...] = ()

    @classmethod
    def from_roots(cls, roots: Iterable[str | os.PathLike]) -> ModelLibrary:
        """A library over models folders in ComfyUI's layout; files and folders directly under a root count too."""
        paths = [Path(root) for root in roots]
        return cls(
            checkpoint_folders=tuple(path for root in paths for path in (root / "checkpoints", root)),
            diffusers_folders=tuple(path for root in paths for path in (root / "diffusers", root)),
        )

    def names(self) -> list[str]:
        """Every checkpoint's name, the user's sorted, then the embedded one.

        A one-file checkpoint is named by its path below its folder, with forward slashes; a diffusers folder by the
        folder's own name.
        """
        return [*sorted(self._found()), EMBEDDED]

    def find(self, name: str) -> Path:
        """The file or folder called `name`; either path separator is understood.

        Raises CheckpointError with the three nearest names when there is none.
        """
        found = self._found()
        wanted = name.replace("\\", "/")
        if wanted in found:
            return found[wanted]
        searched = ", ".join(str(folder) for folder in self.checkpoint_folders if folder.is_dir()) or "no folder"
        raise CheckpointError(
            f'there is no checkpoint called "{name}". The nearest names are {nearest(wanted, self.names())}. '
            f"Put a .safetensors file into a models folder's checkpoints/, or a diffusers folder into its diffusers/ "
            f"(searched: {searched}; --models DIR or SVD_STAGES_MODELS names another), "
            f'or use the built-in demonstration model "{EMBEDDED}".',
            code="checkpoint.not_found",
        )

    def _found(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self.diffusers_folders:
            for index in sorted(folder.glob("*/model_index.json")) if folder.is_dir() else ():
                found.setdefault(index.parent.name, index.parent)
        for folder in self.checkpoint_folders:
            for file in _safetensors_below(folder):
                found.setdefault(file.relative_to(folder).as_posix(), file)
        return found


def _safetensors_below(folder: Path) -> list[Path]:
    """The .safetensors files below `folder`, without those that belong to a diffusers folder."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        if "model_index.json" in files:
            folders.clear()
            continue
        found += [Path(parent, file) for file in files if file.lower().endswith(".safetensors")]
    return sorted(found)
