"""Which checkpoints the user has, and where: names for the combo, paths for the loader. Needs no torch.

A name in a graph is a stranger's; what it can choose is one of the files and folders that are met below the models
folders, and a name is never made into a path. Links that the user made below them are followed wherever they lead, as
ComfyUI does: models are kept on other disks and linked, the hub's own cache is made of links, and no graph can make
one. What a link leads to is read as any other file, a plain one with a model's header, or refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, nearest, printable

EMBEDDED = "svd-nano"
"""The built-in model: always there, under this name."""
EMBEDDED_FILE = Path(__file__).parent / "svd_nano" / "svd_nano.safetensors"
LONGEST = 300
"""Letters of a name that are shown, and compared with others."""
CHECKPOINTS = (".safetensors",)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Not listed, but found when named, so that the loader can say why they are not read."""


@dataclass(frozen=True)
class ModelLibrary:
    """Where checkpoints are.

    checkpoint_folders  searched for one-file checkpoints, with all that is below them
    diffusers_folders   searched for diffusers folders directly in them
    flat_folders        searched for one-file checkpoints directly in them, and not below: a models root also holds
                        LoRAs, VAEs and other models that are no checkpoints
    """

    checkpoint_folders: tuple[Path, ...] = ()
    diffusers_folders: tuple[Path, ...] = ()
    flat_folders: tuple[Path, ...] = ()

    @classmethod
    def from_roots(cls, roots: Iterable[str | os.PathLike]) -> ModelLibrary:
        """A library over models folders in ComfyUI's layout; files and folders directly under a root count too."""
        paths = tuple(Path(root) for root in roots)
        return cls(
            checkpoint_folders=tuple(root / "checkpoints" for root in paths),
            diffusers_folders=tuple(path for root in paths for path in (root / "diffusers", root)),
            flat_folders=paths,
        )

    def names(self) -> list[str]:
        """Every checkpoint's name, the user's sorted, then the embedded one.

        A one-file checkpoint is named by its path below its folder, with forward slashes; a diffusers folder by the
        folder's own name.
        """
        return [*sorted(self._found(CHECKPOINTS).keys() - {EMBEDDED}), EMBEDDED]

    def find(self, name: str | None) -> Path:
        """The file or folder called `name`, the embedded one too; either path separator is understood.

        Only what was met in the folders is found, so no name leads out of them. Raises CheckpointError with the three
        nearest names when there is none, also for what a graph has there that is no text at all.
        """
        if name is None:  # null in the graph looks like a link to VALIDATE_INPUTS, which therefore lets it pass
            raise CheckpointError(
                f'the checkpoint has no name, it is null; give the name of one, such as "{self.names()[0]}".',
                code="checkpoint.not_found",
            )
        if name == EMBEDDED:
            return EMBEDDED_FILE
        found = self._found(CHECKPOINTS + PICKLES)
        wanted = str(name).replace("\\", "/")
        if wanted in found and isinstance(name, str):
            return found[wanted]
        folders = (*self.checkpoint_folders, *self.flat_folders)
        searched = ", ".join(str(folder) for folder in folders if folder.is_dir()) or "no folder"
        raise CheckpointError(
            f'there is no checkpoint called "{printable(name, LONGEST)}". The nearest names are '
            f"{nearest(wanted[:LONGEST], self.names())}. "
            f"Put a .safetensors file into a models folder's checkpoints/, or a diffusers folder into its diffusers/ "
            f"(searched: {searched}; --models DIR or SVD_STAGES_MODELS names another), "
            f'or use the built-in model "{EMBEDDED}".',
            code="checkpoint.not_found",
        )

    def _found(self, suffixes: tuple[str, ...]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self.diffusers_folders:
            for index in sorted(folder.glob("*/model_index.json")) if folder.is_dir() else ():
                if not index.parent.name.startswith("."):
                    found.setdefault(index.parent.name, index.parent)
        for folder in self.checkpoint_folders:
            for file in sorted(_files_below(folder, suffixes)):
                found.setdefault(file.relative_to(folder).as_posix(), file)
        for folder in self.flat_folders:
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if _is_model(file, suffixes):
                    found.setdefault(file.name, file)
        return found


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """The model files below `folder`, without the parts of diffusers folders and what is still written.

    Links to folders are followed, as ComfyUI does, each folder once: a link to a folder above must not go round.
    """
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen or "model_index.json" in files:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for path in (Path(parent, name) for name in files) if _is_model(path, suffixes))


def _is_model(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
