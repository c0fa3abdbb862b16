"""Convert between the two formats on disk, and save a loaded checkpoint as a single file."""

from __future__ import annotations

import logging
import shlex
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..models.components import Checkpoint
from ..utils.progress import Progress, no_progress
from .build_modules import build_modules
from .diffusers_format import write_folder
from .load import open_checkpoint
from .model_metadata import MAX_FRAMES, ModelMetadata
from .reader import Component, OpenCheckpoint, module_tensors
from .safetensors_writer import atomic_output, refuse_existing
from .single_file import single_file_tensors, write_single_file

logger = logging.getLogger(__name__)

FILE_SUFFIX = ".safetensors"


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    progress: Progress = no_progress,
    num_frames: int | None = None,
) -> Path:
    """Convert a single-file checkpoint to a diffusers folder, or a diffusers folder to a single file.

    Dtypes are kept; of several variants in a folder, the most precise is converted. One tensor is in memory at a time.
    `destination` appears when it is complete. Tensors of a single file that are not part of the model (text encoder,
    second decoder) are omitted.

    Args:
        num_frames: Frames that the model was trained for, 1 to 4096. None for the value in `source`. If that is unknown
            too, the result has none, and a warning is logged.

    Raises:
        CheckpointError: `source` is incomplete, not an SVD, changed meanwhile, or has a setting that the other format
            cannot store.
        SettingError: `destination` is named like the other format, or `num_frames` is out of range.
        OutputError: `destination` exists or cannot be written.
    """
    source, destination = Path(source), Path(destination)
    _check_arguments(source, destination, num_frames)
    refuse_existing(destination)
    with open_checkpoint(source, "fp32") as opened:
        if num_frames is not None:
            opened = replace(opened, metadata=replace(opened.metadata, num_frames=num_frames))
        if opened.metadata.num_frames is None:
            logger.warning(
                'the metadata of "%s" has no frames (svd: 14, svd_xt: 25), so that of "%s" will have none. '
                "The default is 25. To store the number, convert again with `num_frames`.",
                source.name,
                destination.name,
            )
        modules: tuple[Any, Any, Any] = build_modules(opened)
        if source.is_dir():
            opened = _with_all_settings(opened, *modules)
        return _write(opened, destination, progress, to_folder=not source.is_dir())


def _with_all_settings(opened: OpenCheckpoint, unet: Any, vae: Any, clip: Any) -> OpenCheckpoint:
    """Add the settings that a folder's config files omit because they are the libraries' defaults."""
    return replace(
        opened,
        unet=replace(opened.unet, config=dict(unet.config)),
        vae=replace(opened.vae, config=dict(vae.config)),
        clip=replace(opened.clip, config=clip.config.to_dict()),
    )


def _check_arguments(source: Path, destination: Path, num_frames: int | None) -> None:
    if num_frames is not None and not 1 <= num_frames <= MAX_FRAMES:
        raise SettingError(f"frames must be from 1 to {MAX_FRAMES}, got {num_frames}.")
    to_file = source.is_dir()
    if not (to_file or source.is_file()) or to_file == (destination.suffix.lower() == FILE_SUFFIX):
        return
    need, fixed = f"a folder, whose name must not end in {FILE_SUFFIX}", str(destination.with_suffix(""))
    if to_file:
        need, fixed = f"one file, whose name must end in {FILE_SUFFIX}", f"{destination}{FILE_SUFFIX}"
    raise SettingError(
        f'"{source.name}" is a {"folder" if to_file else "file"} and is converted to {need}, got '
        f'"{destination.name}". Run svd-stages convert-checkpoint {shlex.quote(str(source))} {shlex.quote(fixed)}'
    )


def save_single_file(checkpoint: Checkpoint, path: str | Path) -> Path:
    """Save a loaded checkpoint as a single file in Stability's layout. Dtypes are kept.

    Raises:
        OutputError: `path` exists or cannot be written.
        CheckpointError: The layout has no names for this architecture.
    """
    return _write(open_in_memory(checkpoint), Path(path), no_progress, to_folder=False)


def _write(opened: OpenCheckpoint, destination: Path, progress: Progress, to_folder: bool) -> Path:
    if to_folder:
        write, total = write_folder, sum(len(component.tensors) for component in opened.components())
    else:
        write, total = write_single_file, len(single_file_tensors(opened))
    with atomic_output(destination, to_folder) as path, progress("writing", total, "tensor") as advance:
        numbers = count(1)
        write(opened, path, lambda: advance(next(numbers)))
        opened.check_unchanged()
    return destination


def open_in_memory(checkpoint: Checkpoint) -> OpenCheckpoint:
    """Return a loaded checkpoint as an open one, with all deferred weights read."""
    checkpoint.model.load_deferred()
    unet, vae, clip = checkpoint.model.unet, checkpoint.vae.vae, checkpoint.clip_vision.encoder
    defaults = checkpoint.model.defaults
    metadata = ModelMetadata(
        **asdict(defaults),
        clip_heads=clip.config.num_attention_heads,
        scaling_factor=checkpoint.model.scaling_factor,
        sigma_min=checkpoint.model.sigma_min,
        sigma_max=checkpoint.model.sigma_max,
        force_upcast=bool(vae.config["force_upcast"]),
        image_mean=checkpoint.clip_vision.image_mean,
        image_std=checkpoint.clip_vision.image_std,
    )
    return OpenCheckpoint(
        name="the loaded model",
        metadata=metadata,
        unet=Component("UNet", {**unet.config, "num_frames": defaults.num_frames}, module_tensors(unet)),
        vae=Component("VAE", dict(vae.config), module_tensors(vae)),
        clip=Component("CLIP tower", clip.config.to_dict(), module_tensors(clip)),
    )
