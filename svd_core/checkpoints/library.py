"""List the user's checkpoints: names for node inputs, paths for the loader. Needs no torch.

Names in graphs are untrusted: a name selects one of the files and folders found below the models folders, and is never
joined to a path. Symbolic links below them are followed, as ComfyUI does: models are linked from other disks, the hub's
cache consists of links, and no graph can create one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError, nearest, printable, quoted
from .catalog import CatalogEntry, misspelled, published

EMBEDDED = "svd-nano"
"""Name of the built-in model."""
EMBEDDED_FILE = Path(__file__).parent / "svd_nano" / "svd_nano.safetensors"
PACKAGE = Path(__file__).resolve().parents[2]
MAX_NAME = 300
"""Characters of a name that errors show and compare with others."""
CHECKPOINTS = (".safetensors",)
PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Not listed, but found by name, so that the loader can explain why they are not read."""


@dataclass(frozen=True)
class ModelLibrary:
    """The folders with checkpoints.

    Attributes:
        checkpoint_folders: Searched recursively for single files.
        diffusers_folders: Searched for diffusers folders, not recursively.
        flat_folders: Searched for single files, not recursively: a models root also holds LoRAs, VAEs and other files
            that are not checkpoints.
    """

    checkpoint_folders: tuple[Path, ...] = ()
    diffusers_folders: tuple[Path, ...] = ()
    flat_folders: tuple[Path, ...] = ()

    @classmethod
    def from_roots(cls, roots: Iterable[str | os.PathLike]) -> ModelLibrary:
        """Make a library of models folders in ComfyUI's layout. Files and folders directly in a root are included."""
        paths = tuple(Path(root) for root in roots)
        return cls(
            checkpoint_folders=tuple(root / "checkpoints" for root in paths),
            diffusers_folders=tuple(path for root in paths for path in (root / "diffusers", root)),
            flat_folders=paths,
        )

    def names(self) -> list[str]:
        """Return all names, the user's sorted, then the built-in one.

        A single file is named by its path relative to its folder, with forward slashes; a diffusers folder by its own
        name.
        """
        return [*sorted(self._scan(CHECKPOINTS).keys() - {EMBEDDED}), EMBEDDED]

    def find(self, name: str | None) -> Path:
        """Return the file or folder called `name`. Both path separators are accepted, and names of the catalog.

        Raises:
            CheckpointError: No such name (lists the three nearest), null, or not a string.
        """
        if name is None:  # VALIDATE_INPUTS accepts null in a graph, because null looks like a link there
            raise CheckpointError(
                f'the checkpoint must be a name such as "{self.names()[0]}", got null.',
                code="checkpoint.not_found",
            )
        if name == EMBEDDED:
            return EMBEDDED_FILE
        paths = self._scan(CHECKPOINTS + PICKLES)
        requested = str(name).replace("\\", "/")
        entry = published(requested)
        for each in (requested, entry.file_name if entry else None):
            if each in paths and isinstance(name, str):
                return paths[each]
        raise CheckpointError(self._explain_missing(name, entry), code="checkpoint.not_found")

    def _explain_missing(self, name: object, entry: CatalogEntry | None) -> str:
        """Describe what to do about a checkpoint that is not in the library."""
        if entry is not None:
            fix = f"svd-stages download {entry.name}"
            return f'the checkpoint "{printable(name, 80)}" is missing. Get it with: {fix}'
        names, text = self.names(), str(name)[:MAX_NAME]
        near = misspelled(text, names)
        if near is not None:
            fix = f"did you mean {near.name}? Get it with: svd-stages download {near.name}"
            return f'there is no checkpoint "{printable(name, 80)}"; {fix}'
        folder = next(iter(self.flat_folders), "models")
        return (
            f'there is no checkpoint "{printable(name, 80)}"; nearest: {nearest(text, names)}. '
            f"Its folder must be {quoted(folder)}, or be named with `models`."
        )

    def _scan(self, suffixes: tuple[str, ...]) -> dict[str, Path]:
        """Return name -> path. The first of several folders wins."""
        paths: dict[str, Path] = {}
        for folder in self.diffusers_folders:
            for index in sorted(folder.glob("*/model_index.json")) if folder.is_dir() else ():
                if not index.parent.name.startswith("."):
                    paths.setdefault(index.parent.name, index.parent)
        for folder in self.checkpoint_folders:
            for file in sorted(_files_below(folder, suffixes)):
                paths.setdefault(file.relative_to(folder).as_posix(), file)
        for folder in self.flat_folders:
            for file in sorted(folder.iterdir()) if folder.is_dir() else ():
                if _is_model(file, suffixes):
                    paths.setdefault(file.name, file)
        return paths


def models_of_environment() -> list[Path]:
    """Return the models folders in `$SVD_STAGES_MODELS`, which are separated by the system's path separator."""
    return [Path(root) for root in os.environ.get("SVD_STAGES_MODELS", "").split(os.pathsep) if root]


def default_models_roots() -> list[Path]:
    """Return the default models folders.

    These are the folders in `$SVD_STAGES_MODELS`, else the models folder of the ComfyUI that contains this package,
    else ./models.
    """
    in_custom_nodes = PACKAGE.parent.name == "custom_nodes"
    return models_of_environment() or [PACKAGE.parent.parent / "models" if in_custom_nodes else Path("models")]


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the model files below `folder`, without those of diffusers folders and hidden (incomplete) ones.

    Links to folders are followed, each folder once, so that a link to a parent folder does not loop.
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
