"""Conversion between the two forms on disk, and saving a checkpoint that is in memory in either."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from ..host import Advance
from .folder import write_folder
from .load import open_checkpoint
from .modules import check, empty_clip, empty_unet, empty_vae
from .opened import OpenCheckpoint, open_in_memory
from .parts import Checkpoint
from .progress import Progress, no_progress
from .single_file import single_file_tensors, write_single_file
from .writing import in_place, refuse_existing


def convert_checkpoint(source: str | Path, destination: str | Path, progress: Progress = no_progress) -> Path:
    """Write the one-file checkpoint `source` as a diffusers folder, or the diffusers folder `source` as one file.

    Types are kept (of several variants in a folder the one with the most digits is taken), one tensor is in memory at
    a time, and `destination` appears when it is complete. What the one file holds beside the model (the text tower, a
    second decoder) is left out. Raises CheckpointError when `source` is not a whole SVD, and OutputError when there
    is something at `destination` already or it cannot be written.
    """
    source, destination = Path(source), Path(destination)
    refuse_existing(destination)
    with open_checkpoint(source, "fp32") as opened:
        for component, empty in zip(opened.components(), (empty_unet, empty_vae, empty_clip), strict=True):
            check(opened, component, empty(opened))
        if source.is_dir():
            _write_file(opened, destination, progress)
        else:
            _write_folder(opened, destination, progress)
    return destination


def save_single_file(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write a checkpoint that is in memory as one file in Stability's layout. Types are kept.

    Raises OutputError when there is something at `path` already or it cannot be written, and CheckpointError for a
    shape of model that the layout has no names for.
    """
    return _write_file(open_in_memory(checkpoint), Path(path), no_progress)


def save_folder(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Write a checkpoint that is in memory as a diffusers folder. Types are kept.

    Raises OutputError when there is something at `path` already or it cannot be written.
    """
    return _write_folder(open_in_memory(checkpoint), Path(path), no_progress)


def _write_file(opened: OpenCheckpoint, path: Path, progress: Progress) -> Path:
    with in_place(path) as work, progress("writing", len(single_file_tensors(opened)), "tensor") as advance:
        write_single_file(opened, work, _counting(advance))
    return path


def _write_folder(opened: OpenCheckpoint, path: Path, progress: Progress) -> Path:
    total = sum(len(component.tensors) for component in opened.components())
    with in_place(path, folder=True) as work, progress("writing", total, "tensor") as advance:
        write_folder(opened, work, _counting(advance))
    return path


def _counting(advance: Advance) -> Callable[[], None]:
    numbers = count(1)
    return lambda: advance(next(numbers))
